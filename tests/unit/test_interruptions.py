"""A soft time limit is raised between any two lines of this package; no value stays open by that.

A tracer raises it at one event after another, once the handler has returned.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Query,
    Session,
    command_handler,
    query_handler,
)
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.dispatch import bus, context, event_loop, scopes
from cqrs_celery.dispatch.context import current_handler
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.envelope import pack_command
from cqrs_celery.dispatch.handler import task_of
from cqrs_celery.domain import recording, watching
from cqrs_celery.store import reading


class Value:
    """Notes how often it was closed."""

    made: ClassVar[list[Value]] = []

    def __init__(self) -> None:
        self.exits = 0

    def __enter__(self) -> Self:
        self.made.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.exits += 1


class Pen(Value):
    pass


class Ink(Value):
    pass


class Paper(Value):
    pass


class AsyncInk(Value):
    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()


class Noted(Event, name="interruptions.noted"):
    pass


class Pad(Aggregate, name="InterruptedPad"):
    pass


class Note(Command, name="interruptions.note", aggregate=Pad, key="id"):
    id: str
    commits: bool = True


class NoteSoon(Note, name="interruptions.note_soon", aggregate=Pad, key="id"):
    pass


class Scribble(Note, name="interruptions.scribble", aggregate=Pad, key="id"):
    pass


class Look(Query, name="interruptions.look"):
    id: str


class Interruption:
    """A soft time limit that is raised at one traced event in some modules, after `arm`."""

    def __init__(self, at: int, *modules: Any) -> None:
        self._left = at
        self._files = {str(Path(str(module.__file__))) for module in modules}
        self._is_armed = False
        self.where = ""

    def arm(self) -> None:
        self._is_armed = True

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if self._is_armed and not self.where and frame.f_code.co_filename in self._files:
            self._left -= 1
            if self._left < 0:
                self.where = f"{event} of {frame.f_code.co_qualname}, line {frame.f_lineno}"
                raise SoftTimeLimitExceeded
        return self

    @contextmanager
    def tracing(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            yield
        finally:
            sys.settrace(before)


#: The one that is tried now.
now: list[Interruption] = []


def write(command: Note, session: Session) -> None:
    if command.commits:
        session.get_or_create(Pad, command.id).record(Noted())
    now[-1].arm()


@command_handler(Note)
def note(command: Note, session: Session, pen: Pen, ink: Ink, paper: Paper) -> None:
    write(command, session)


@command_handler(NoteSoon)
async def note_soon(
    command: NoteSoon, session: Session, pen: Pen, ink: AsyncInk, paper: Paper
) -> None:
    write(command, session)


@command_handler(Scribble)
def scribble(command: Scribble, session: Session) -> None:
    write(command, session)


@query_handler(Look)
def look(query: Look, session: Session, pen: Pen, ink: Ink, paper: Paper) -> None:
    now[-1].arm()


MINE = {key: one for key, one in definitions._by_key.items() if one.place[0] == __name__}
for key in MINE:
    del definitions._by_key[key]


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """Declare this module's handlers for one test: other tests' applications provide nothing."""
    definitions._by_key.update(MINE)
    definitions._names = {}
    yield
    for key in MINE:
        definitions._by_key.pop(key, None)
    definitions._names = {}


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application that provides the values."""
    app = Celery("interruptions", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://")
    made = CQRS(app)
    for cls in Pen, Ink, Paper:
        made.provide(cls, cls)

    async def make_ink() -> Any:
        async with AsyncInk() as ink:
            yield ink

    made.provide(AsyncInk, make_ink)
    yield made
    app.close()


WAYS: dict[str, Callable[[CQRS, str], Any]] = {
    "sync": lambda cqrs, pad: cqrs.execute(Note(id=pad)),
    "async": lambda cqrs, pad: cqrs.execute(NoteSoon(id=pad)),
    "sync, without a commit": lambda cqrs, pad: cqrs.execute(Note(id=pad, commits=False)),
    "async, without a commit": lambda cqrs, pad: cqrs.execute(NoteSoon(id=pad, commits=False)),
    "query": lambda cqrs, pad: cqrs.query(Look(id=pad)),
}


def interrupted(work: Callable[[str], Any], *modules: Any) -> Iterator[str]:
    """Do work again and again, interrupted at one event after another; tell where that was."""
    at = 0
    while True:
        now[:] = [Interruption(at, *modules)]
        Value.made.clear()
        with now[-1].tracing(), suppress(SoftTimeLimitExceeded):
            work(str(at))
        if not now[-1].where:
            assert at > 5
            return
        yield now[-1].where
        at += 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.timeout(60)
def test_every_value_is_closed_once_wherever_a_soft_time_limit_is_raised(
    cqrs: CQRS, way: str
) -> None:
    left_open: list[str] = []

    # when
    def run(pad: str) -> None:
        copy_context().run(WAYS[way], cqrs, pad)

    for where in interrupted(run, scopes, bus, event_loop):
        exits = sorted(one.exits for one in Value.made)
        # then, but for the one that is interrupted itself, where its closing begins
        assert exits in ([1, 1, 1], [0, 1, 1]), where
        if exits[0] == 0:
            left_open.append(where)
    assert len(left_open) <= 3
    assert len(set(left_open)) <= 1


@pytest.mark.parametrize("cls", [Note, NoteSoon])
@pytest.mark.timeout(60)
def test_a_task_that_is_interrupted_anywhere_leaves_no_trace_in_its_process(
    cqrs: CQRS, cls: type[Note]
) -> None:
    # given a task as a worker runs it
    (definition,) = {one for one in MINE.values() if one.messages == (cls,)}
    task = task_of(cqrs.app, definition)

    def run(pad: str) -> None:
        packed = pack_command(cls(id=pad), cqrs.runtime.serializer)
        task.push_request(called_directly=False, is_eager=False, id=f"{cls.__name__}{pad}")
        try:
            task.run(packed)
        finally:
            task.pop_request()

    # when
    for where in interrupted(run, context, watching, reading):
        # then the next one is not taken for one that was called in this one
        assert current_handler() == "", where
        assert recording.watched.get() is None, where
        assert reading._current.get() is None, where


class Interrupting(MemoryEventStore):
    """A store from which a soft time limit comes, once it has committed or before."""

    is_late = True

    def append(self, *args: Any, **options: Any) -> Any:
        if self.is_late:
            super().append(*args, **options)
        raise SoftTimeLimitExceeded


@pytest.mark.parametrize("cls", [Note, NoteSoon, Scribble])
def test_a_command_whose_commit_is_there_has_not_failed_by_a_soft_time_limit(
    cls: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    now[:] = [Interruption(0)]
    app = Celery("interruptions", set_as_current=False)
    app.conf.update(broker_url="memory://")
    store = Interrupting()
    cqrs = CQRS(app, store=store)
    for provided in Pen, Ink, Paper, AsyncInk:
        cqrs.provide(provided, lambda cls=provided: cls())
    # when
    result = cqrs.execute(cls(id="1"), idempotency_key="it")
    # then
    assert (result.position, result.is_repeated) == (1, False)
    assert "a soft time limit came while" in caplog.text
    # and if it is not there, or can't be looked for
    with pytest.raises(SoftTimeLimitExceeded):
        cqrs.execute(cls(id="2"))
    store.is_late = False
    with pytest.raises(SoftTimeLimitExceeded):
        cqrs.execute(cls(id="3"), idempotency_key="another")
    app.close()
