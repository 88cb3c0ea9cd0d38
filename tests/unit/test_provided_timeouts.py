"""Timeouts and task groups in async factories: what ends the handler by them is its outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from celery import Celery

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
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.errors import HandlerCancelled
from tests.waiting import wait_until

#: What happened, in order.
story: list[str] = []


class Line:
    pass


class Held(Event, name="lines.held"):
    pass


class Phone(Aggregate, name="LinePhone"):
    pass


class Hold(Command[str], name="lines.hold", aggregate=Phone, key="id"):
    id: str = "a"
    seconds: float = 30


class Listen(Query[str], name="lines.listen"):
    pass


class HangUp(Command, name="lines.hang_up"):
    pass


@command_handler(Hold)
async def hold(command: Hold, session: Session, line: Line) -> str:
    phone = await session.get_or_create_async(Phone, command.id)
    phone.record(Held())
    await asyncio.sleep(command.seconds)
    return "held"


@query_handler(Listen)
async def listen(query: Listen, line: Line) -> str:
    await asyncio.sleep(30)
    return "heard"


@command_handler(HangUp)
async def hang_up(command: HangUp, line: Line) -> None:
    raise asyncio.CancelledError


MINE = {key: one for key, one in definitions._by_key.items() if one.place[0] == __name__}
for key in MINE:
    del definitions._by_key[key]


class SlowStore(MemoryEventStore):
    """A store that commits when a time has ended."""

    def append(self, *args: Any, **options: Any) -> Any:
        wait_until(lambda: "end of the time" in story, 5, "the end of the time")
        committed = super().append(*args, **options)
        story.append("committed")
        return committed


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application in memory, with this module's handlers."""
    story.clear()
    definitions._by_key.update(MINE)
    definitions._names = {}
    app = Celery("lines", set_as_current=False)
    app.conf.update(
        broker_url="memory://", task_always_eager=True, task_eager_propagates=True
    )  # fmt: skip
    yield CQRS(app, store=SlowStore())
    app.close()
    for key in MINE:
        definitions._by_key.pop(key, None)
    definitions._names = {}


async def with_a_time() -> AsyncIterator[Line]:
    try:
        async with asyncio.timeout(0.05):
            yield Line()
    except BaseException as error:
        story.append(type(error).__name__)
        raise


async def with_a_group() -> AsyncIterator[Line]:
    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise OSError("the line is dead")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        yield Line()


WAYS: dict[str, Callable[[CQRS], Any]] = {
    "execute": lambda cqrs: cqrs.execute(Hold()),
    "execute_async": lambda cqrs: asyncio.run(cqrs.execute_async(Hold())),
    "eager": lambda cqrs: Hold().delay().get(),
    "query": lambda cqrs: cqrs.query(Listen()),
    "query_async": lambda cqrs: asyncio.run(cqrs.query_async(Listen())),
}

ways = pytest.mark.parametrize("way", WAYS)


@ways
def test_the_end_of_a_factory_s_timeout_is_the_outcome(cqrs: CQRS, way: str) -> None:
    cqrs.provide(Line, with_a_time)
    with pytest.raises(TimeoutError):
        WAYS[way](cqrs)
    assert story == ["TimeoutError"]
    assert cqrs.store.read_all() == []


@ways
def test_what_ends_a_factory_s_task_group_is_the_outcome(cqrs: CQRS, way: str) -> None:
    cqrs.provide(Line, with_a_group)
    with pytest.raises(ExceptionGroup) as raised:
        WAYS[way](cqrs)
    assert isinstance(raised.value.exceptions[0], OSError)
    assert cqrs.store.read_all() == []


def test_a_time_that_ends_while_the_session_commits_changes_nothing(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    # given a store that commits once the time is over
    async def make_line() -> AsyncIterator[Line]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(0.05):
            loop.call_later(0.1, story.append, "end of the time")
            yield Line()
            story.append("closed")

    cqrs.provide(Line, make_line)
    # when
    result = cqrs.execute(Hold(seconds=0))
    # then
    assert result.value == "held"
    assert result.position == 1
    assert story == ["end of the time", "committed", "closed"]
    assert caplog.text == ""


def test_a_cancellation_of_the_handler_s_own_stays_one_whatever_closing_raises(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    async def make_line() -> AsyncIterator[Line]:
        try:
            yield Line()
        finally:
            raise OSError("the line is dead")

    cqrs.provide(Line, make_line)
    with pytest.raises(HandlerCancelled):
        cqrs.execute(HangUp())
    assert "raised OSError at closing; another error is raised" in caplog.text
