"""The check of English finds what it is for, and takes ordinary words as they are."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.prose import (
    docstrings,
    findings,
    imperative_docstrings,
    inverted_conditions,
    metaphors,
    planning_words,
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
