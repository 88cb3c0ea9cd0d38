"""Each line of the log names what it is about, in its text: Celery's format shows nothing else."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import cqrs_celery
from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler, subscribes
from cqrs_celery.dispatch.definitions import Definitions
from cqrs_celery.queue.dead_letters import LookedAfter
from cqrs_celery.queue.values import Recovered
from cqrs_celery.testing.scenario import in_memory
from cqrs_celery.transport.consumer.recoverer import Recoverer
from cqrs_celery.transport.consumer.redriving import look_after
from cqrs_celery.workers import registration
from cqrs_celery.workers.registration import RegistrationStep

PACKAGE = Path(cqrs_celery.__file__).parent
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, list[ast.expr]]]:
    """Yield the calls of loggers, each with its text and what is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.endswith("logger") and node.func.attr in METHODS:
                yield node, node.args[1:] if node.func.attr == "log" else node.args


def nameless(source: str) -> list[str]:
    """Return the lines whose text has no place for what they are about, or is an f-string."""
    return [
        f"line {call.lineno}: {ast.unparse(call)[:80]}"
        for call, args in calls(ast.parse(source))
        if len(args) < 2 or isinstance(args[0], ast.JoinedStr)
    ]


@pytest.mark.parametrize("line", [
    "logger.info('subscription registered', extra={'queue': queue})",
    "self._logger.log(level, 'relay active')",
    "logger.error(f'lease of {name} lost', name)",
])  # fmt: skip
def test_a_line_that_names_nothing_is_found(line: str) -> None:
    assert nameless(line)


def test_every_line_of_the_log_names_what_it_is_about() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sources
        if (lines := nameless(path.read_text(encoding="utf-8")))
    }
    assert not found
    count = sum(len(list(calls(ast.parse(path.read_text(encoding="utf-8"))))) for path in sources)
    assert count > 40


# ------------------------------------------------------------ the texts that users see most


class Filled(Event, name="logs.filled"):
    pass


class Emptied(Event, name="logs.emptied"):
    pass


class Jar(Aggregate, name="LogsJar"):
    pass


class Fill(Command, name="logs.fill", aggregate=Jar, key="id"):
    id: str


#: What another writer does while the handler runs, the first time.
meanwhile: list[Callable[[], object]] = []


@command_handler(Fill)
def fill(command: Fill, session: Session) -> None:
    jar = session.find(Jar, command.id) or Jar(command.id)
    session.add(jar)
    jar.record(Filled())
    if meanwhile:
        meanwhile.pop()()


@subscribes(Filled, subscription="logs.levels")
def up(event: Filled) -> None: ...


@subscribes(Emptied, subscription="logs.levels")
def down(event: Emptied) -> None: ...


def fill_elsewhere(cqrs: CQRS) -> None:
    """Do what another process does."""
    with cqrs.session() as session:
        jar = Jar("7")
        session.add(jar)
        jar.record(Filled())


def test_a_conflict_names_the_stream_and_the_handler(caplog: pytest.LogCaptureFixture) -> None:
    with in_memory("logs") as cqrs:
        meanwhile.append(lambda: fill_elsewhere(cqrs))
        cqrs.execute(Fill(id="7"))
    assert caplog.messages == [
        "conflict on LogsJar-7 (expected version 0, found 1), handler fill is repeated"
    ]


def test_a_registered_subscription_is_named_once_with_all_its_event_types(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Subscribers:
        def register(self, subscriber: Any) -> int:
            return 1 if "Filled" in subscriber.topics[0].title() else 0

        def unregister(self, name: str, topics: Any) -> int:
            return 0

    mine = Definitions()
    for handler in (up, down):
        mine.add(handler.definition)
    monkeypatch.setattr(registration, "definitions", mine)
    with in_memory("logs") as cqrs, caplog.at_level(logging.INFO, "cqrs_celery"):
        RegistrationStep(None)._register(cqrs.runtime, Subscribers())
    assert caplog.messages == ["subscription logs.levels registered (2 event types, 1 new)"]


@pytest.mark.parametrize(("letters", "level"), [(0, "WARNING"), (2, "ERROR")])
def test_recovered_messages_are_counted_and_their_consumer_named(
    caplog: pytest.LogCaptureFixture, letters: int, level: str
) -> None:
    class Queue:
        client = None

        def recover(self, *, most_tries: int, ended: Any) -> list[Recovered]:
            return [Recovered(name, 5, letters) for name in ended]

    queue: Any = Queue()
    recoverer = Recoverer(queue, name="anna", lease_s=30, max_deliveries=3)
    recoverer._recover({"worker-1@shop": None})
    (record,) = caplog.records
    assert record.levelname == level
    assert record.getMessage() == (
        f"recovered 5 messages of the lost consumer worker-1@shop; {letters} of them, delivered"
        " too often, became dead letters"
    )


#: What is done about a dead letter, and what the log says of it.
DEEDS = {
    "redriven": "INFO: dead letter 7 of queue shop.stock is tried again, 3 wait behind it",
    "discarded": "ERROR: dead letter 7 of queue shop.stock deleted, its time is over; 3 waited"
    " behind it",
    "archived": "CRITICAL: dead letter 7 of queue shop.stock archived, its time is over, and 3 wait"
    " behind it; its sequence stays closed until"
    " `celery -A <app> cqrs dead-letters retry --archived` or `discard`",
    "closed": "CRITICAL: archived dead letter 7 of queue shop.stock keeps its sequence closed, 3"
    " wait behind it: `celery -A <app> cqrs dead-letters retry --archived` or `discard`",
}


@pytest.mark.parametrize("deed", DEEDS)
def test_what_becomes_of_a_dead_letter_names_it(
    caplog: pytest.LogCaptureFixture, deed: str
) -> None:
    class Letters:
        def redrive_due(self) -> list[LookedAfter]:
            return [LookedAfter("shop.stock", 7, deed, 3, True)]

    letters: Any = Letters()
    with caplog.at_level(logging.INFO):
        look_after(letters)
    assert [f"{record.levelname}: {record.getMessage()}" for record in caplog.records] == [
        DEEDS[deed],
        "CRITICAL: too many messages (3) wait behind dead letter 7 of queue shop.stock",
    ]
