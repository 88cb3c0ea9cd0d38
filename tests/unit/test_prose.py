"""The check of English finds what it is for, and takes ordinary words as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.prose import (
    bare_entries,
    docstrings,
    findings,
    imperative_docstrings,
    inverted_conditions,
    metaphors,
    planning_words,
    riddles,
    second_verbs,
    verbal_class_docstrings,
)


@pytest.mark.parametrize("source", [
    'class A:\n    """Be something."""',
    'class A:\n    """Say what."""',
    'def f():\n    """Say whether."""',
    'def f():\n    """Be quick."""',
    'async def f():\n    """Say whether."""',
    '"""Say it."""',
])  # fmt: skip
def test_an_imperative_docstring_is_found(source: str) -> None:
    assert len(list(imperative_docstrings(docstrings(ast.parse(source))))) == 1


@pytest.mark.parametrize("text", ["Begin a thing.", "Before all.", "Saying nothing.", "A thing."])
def test_other_docstrings_are_not(text: str) -> None:
    tree = ast.parse(f'def f():\n    """{text}"""')
    assert list(imperative_docstrings(docstrings(tree))) == []


@pytest.mark.parametrize("text", [
    "Has it committed before, the recorded outcome is the result.",
    "It is taken. Is the lease over, nothing is written.",
    "- a list\n- Does it fail, it is tried again",
])  # fmt: skip
def test_a_condition_without_if_is_found(text: str) -> None:
    assert len(list(inverted_conditions(text))) == 1


@pytest.mark.parametrize("text", [
    "If it has committed before, the outcome is the result.",
    "Is it durable? Yes, always.",
    "Do the upkeep of the queues, then go on.",
    "It has a name, and it is there, in the queue.",
])  # fmt: skip
def test_other_sentences_are_not(text: str) -> None:
    assert list(inverted_conditions(text)) == []


def test_words_of_planning_are_found_and_space_is_not_meant() -> None:
    assert list(planning_words("A room imports only rooms below it.\n# The house")) == [
        "room", "rooms", "house"
    ]  # fmt: skip
    assert list(planning_words("The queue has no room for it. There is room for two.")) == []
    assert list(planning_words("a warehouse, a bathroom")) == []


def test_modules_named_by_a_metaphor_are_found() -> None:
    assert list(metaphors(Path("cqrs_celery/transport/hand.py"))) == ["hand"]
    assert list(metaphors(Path("cqrs_celery/wire/kept.py"))) == ["wire"]
    assert list(metaphors(Path("cqrs_celery/transport/handler.py"))) == []


def test_each_kind_is_found_in_a_tree(tmp_path: Path) -> None:
    package = tmp_path / "cqrs_celery"
    package.mkdir()
    (package / "pace.py").write_text('"""Has it failed, it goes on."""\nclass A:\n    """Be."""\n')
    (tmp_path / "README.md").write_text("# The house\n\n```text\na room\n```\n")
    assert list(findings(tmp_path)) == [
        "cqrs_celery/pace.py: the module's name pace is a private metaphor",
        "cqrs_celery/pace.py:2 class A: Be.",
        "cqrs_celery/pace.py:1: a condition without if: Has it failed,",
        "README.md: house, where layout, package or layer is meant",
    ]


@pytest.mark.parametrize("text", [
    "Keep events in one database.", "Give locks.", "What an event store can do.", "How many wait.",
])  # fmt: skip
def test_a_class_docstring_that_is_no_noun_phrase_is_found(text: str) -> None:
    as_class = docstrings(ast.parse(f'class A:\n    """{text}"""'))
    as_function = docstrings(ast.parse(f'def f():\n    """{text}"""'))
    assert len(list(verbal_class_docstrings(as_class))) == 1
    assert list(verbal_class_docstrings(as_function)) == []


@pytest.mark.parametrize("text", [
    "An event store.", "Locks of aggregates.", "The holder.", "Keepers of events.", "Counts.",
])  # fmt: skip
def test_a_noun_phrase_is_taken(text: str) -> None:
    assert list(verbal_class_docstrings(docstrings(ast.parse(f'class A:\n    """{text}"""')))) == []


def test_an_entry_without_a_noun_is_found() -> None:
    text = """Read a stream.

    Args:
        stream: whose.
        version: of the content's shape.
        prefix: in front of every key.
        application: ours.
        limit: the most events, of all types, whose type is known.
    """
    assert [one.partition(":")[0] for one in bare_entries(text)] == [
        "stream", "version", "prefix", "application"
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "count"), [
    ("Delete them; returns how many.", 1),
    ("Remove it. Returns from how many.", 1),
    ("Delete them; return how many.", 0),
    ("Call it.\n\nA function of the user's; returns a dict.", 0),
])  # fmt: skip
def test_returns_after_a_verb_is_found_in_the_first_line(text: str, count: int) -> None:
    assert len(list(second_verbs(text))) == count


@pytest.mark.parametrize("text", [
    "Close it; a second time does nothing.",
    "Return the events behind a position.",
    "the place in front of\n    the position",
    "client: returns a client that gives bytes",
    "called or asked once per operation",
    "Acquire it; says whether it was.",
    "a reloaded module is no conflict",
])  # fmt: skip
def test_a_phrase_that_has_to_be_read_twice_is_found(text: str) -> None:
    assert len(list(riddles(text))) == 1


@pytest.mark.parametrize("text", [
    "Calling it again has no effect.",
    "Return the events after a position.",
    "the messages that wait behind it, in front of the others",
    "There is no error.",
    "returns seconds that never decrease",
    "It says whether a transaction is open.",
])  # fmt: skip
def test_a_plain_phrase_is_taken(text: str) -> None:
    assert list(riddles(text)) == []


_REWRITTEN = '''"""A thing."""


class A:
    """Keep it.

    Args:
        b: whose.
    """

    def f(self):
        """Do; returns it."""
        # a second time does nothing
'''


def test_only_rewritten_packages_are_held_to_the_further_checks(tmp_path: Path) -> None:
    for name in ("store", "other"):
        (tmp_path / "cqrs_celery" / name).mkdir(parents=True)
        (tmp_path / "cqrs_celery" / name / "a.py").write_text(_REWRITTEN)
    better = '"Calling it again has no effect"'
    assert list(findings(tmp_path)) == [
        "cqrs_celery/store/a.py:4 class A: Keep it.",
        "cqrs_celery/store/a.py:4: an entry without a noun: b: whose.",
        'cqrs_celery/store/a.py:11: "returns" after a verb, for "return": Do; returns it.',
        f"cqrs_celery/store/a.py: 'a second time does nothing', for {better}",
    ]
