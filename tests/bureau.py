"""The application of the tests about provided values in workers: a bureau whose clerks use pens.

A worker runs `tests.bureau:app` on the server in BUREAU_URL. Each pen, when it is opened, used and
closed, adds a line to the list "bureau:story" of that server.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import redis
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Metadata,
    RecordedEvent,
    Session,
    command_handler,
    subscribes,
)
from cqrs_celery.dispatch.context import current_handler
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.transport import TRANSPORT


class Written(Event, name="bureau.written"):
    pass


class Amended(Event, name="bureau.amended"):
    """Another writer was first."""


class Copied(Event, name="bureau.copied"):
    pass


class Letter(Aggregate, name="BureauLetter"):
    pass


class Copy(Aggregate, name="BureauCopy"):
    pass


class Write(Command, name="bureau.write", aggregate=Letter, key="id"):
    """Write a letter with a pen.

    Attributes:
        fails: whether the handler raises in the end.
        rivals: how many other writers commit first.
    """

    id: str
    fails: bool = False
    rivals: int = 0


class WriteSoon(Write, name="bureau.write_soon", aggregate=Letter, key="id"):
    """The same, in a coroutine, with an async pen in addition."""


class Blot(Command, name="bureau.blot", aggregate=Letter, key="id"):
    """Write with a pen whose closing takes longer than a handler may.

    Attributes:
        commits: whether the handler records something.
    """

    id: str
    commits: bool = True


class BlotSoon(Blot, name="bureau.blot_soon", aggregate=Letter, key="id"):
    """The same, in a coroutine."""


class Pen:
    """A value of one handling.

    Args:
        cause: the id of the message that is handled.
    """

    def __init__(self, cause: str) -> None:
        self.handler = current_handler()
        self.cause = cause
        self.id = uuid4().hex
        self.tell("opened")

    def use(self) -> None:
        self.tell("used")

    def close(self, told: str) -> None:
        stored = app.cqrs.store.read_all(limit=1000)
        own = [one for one in stored if one.event.metadata.causation_id == self.cause]
        is_committed = any(one.event.type != "bureau.amended" for one in own)
        self.tell(f"closed {told} {'after' if is_committed else 'without'} a commit")

    def tell(self, what: str) -> None:
        with redis.Redis.from_url(os.environ["BUREAU_URL"]) as data:
            line = {"pen": self.id, "handler": self.handler, "cause": self.cause, "what": what}
            data.rpush("bureau:story", json.dumps(line))


class AsyncPen(Pen):
    """One that is opened and closed by coroutines."""


class SlowPen(Pen):
    """One whose closing takes a minute."""


class SlowAsyncPen(Pen):
    """The same, in a coroutine."""


def make_pen(metadata: Metadata) -> Iterator[Pen]:
    pen, told = Pen(metadata.causation_id), "well"
    try:
        yield pen
    except BaseException as error:
        told = type(error).__name__
        raise
    finally:
        pen.close(told)


async def make_async_pen(metadata: Metadata) -> AsyncIterator[AsyncPen]:
    pen, told = AsyncPen(metadata.causation_id), "well"
    async with asyncio.timeout(60):  # it is left by the task that has entered it
        try:
            await asyncio.sleep(0)
            yield pen
        except BaseException as error:
            told = type(error).__name__
            raise
        finally:
            await asyncio.sleep(0)
            pen.close(told)


def make_slow_pen(metadata: Metadata) -> Iterator[SlowPen]:
    yield SlowPen(metadata.causation_id)
    time.sleep(60)


async def make_slow_async_pen(metadata: Metadata) -> AsyncIterator[SlowAsyncPen]:
    pen = SlowAsyncPen(metadata.causation_id)
    yield pen
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        pen.tell("cleaned up")


#: How many rivals a letter has had in this process.
rivals: dict[str, int] = {}


def write_it(command: Write, session: Session, *pens: Pen) -> str:
    for pen in pens:
        pen.use()
    letter = session.find(Letter, command.id) or Letter(command.id)
    session.add(letter)
    letter.record(Written())
    if rivals.setdefault(command.id, 0) < command.rivals:
        rivals[command.id] += 1
        with app.cqrs.session() as other:
            rival = other.find(Letter, command.id) or Letter(command.id)
            other.add(rival)
            rival.record(Amended())
    if command.fails:
        raise LookupError(f"{command.id}: out of ink")
    return pens[0].id


@command_handler(Write)
def write(command: Write, session: Session, pen: Pen) -> str:
    return write_it(command, session, pen)


@command_handler(WriteSoon)
async def write_soon(command: WriteSoon, session: Session, pen: Pen, soon: AsyncPen) -> str:
    await session.find_async(Letter, command.id)
    return write_it(command, session, pen, soon)


@command_handler(Blot, soft_time_limit=2)
def blot(command: Blot, session: Session, pen: SlowPen) -> None:
    if command.commits:
        session.get_or_create(Letter, command.id).record(Written())


@command_handler(BlotSoon, soft_time_limit=2)
async def blot_soon(command: BlotSoon, session: Session, pen: SlowAsyncPen) -> None:
    if command.commits:
        letter = await session.get_or_create_async(Letter, command.id)
        letter.record(Written())


@subscribes(Written, max_retries=0)
def copy(event: Written, recorded: RecordedEvent[Written], session: Session, pen: Pen) -> None:
    pen.use()
    session.get_or_create(Copy, f"{recorded.aggregate_id} copy").record(Copied())


@subscribes(Written, max_retries=0)
async def copy_soon(
    event: Written, recorded: RecordedEvent[Written], session: Session, pen: Pen, soon: AsyncPen
) -> None:
    pen.use()
    soon.use()
    made = await session.get_or_create_async(Copy, f"{recorded.aggregate_id} copy soon")
    made.record(Copied())


@subscribes(Copied, batch=10, max_retries=0)
def file_copies(events: list[RecordedEvent[Copied]], pen: Pen) -> None:
    pen.use()


@subscribes(Copied, batch=10, max_retries=0)
async def file_copies_soon(events: list[RecordedEvent[Copied]], pen: Pen, soon: AsyncPen) -> None:
    pen.use()
    soon.use()


@contextmanager
def connected(url: str, **settings: Any) -> Iterator[CQRS]:
    """Give a client of the application that is closed at the end, results included."""
    cqrs = client(url, **settings)
    try:
        yield cqrs
    finally:
        cqrs.app.backend.result_consumer.stop()
        cqrs.app.close()


def client(url: str, **settings: Any) -> CQRS:
    """Return the application on a server."""
    made = Celery("bureau", broker=url, backend=url, set_as_current=False)
    made.conf.update(broker_transport=TRANSPORT, broker_connection_retry_on_startup=True)
    made.conf.update(settings)
    cqrs = CQRS(made)
    cqrs.provide(Pen, make_pen)
    cqrs.provide(AsyncPen, make_async_pen)
    cqrs.provide(SlowPen, make_slow_pen)
    cqrs.provide(SlowAsyncPen, make_slow_async_pen)
    return cqrs


if "BUREAU_URL" in os.environ:
    app = client(os.environ["BUREAU_URL"]).app
    app.set_current()
else:
    # A process that only sends needs no handlers: its other tests' applications have no pens.
    for key, definition in list(definitions._by_key.items()):
        if definition.function.__module__ == __name__:
            del definitions._by_key[key]
    definitions._names = {}
