"""The application of the tests about refusals and async handlers: stands that sell their stock.

A worker runs `tests.kiosk:app` on the server in KIOSK_URL.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery, current_task

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    RecordedEvent,
    Refusal,
    Session,
    applies,
    command_handler,
    subscribes,
)
from cqrs_celery.transport import TRANSPORT


class Sold(Event, name="kiosk.sold"):
    count: int


class SoldOut(Refusal):
    wanted: int
    found: int


class Stand(Aggregate, name="KioskStand"):
    left: int = 5

    def sell(self, count: int) -> None:
        if count > self.left:
            raise SoldOut(
                f"{self.id}: {count} wanted, {self.left} left", wanted=count, found=self.left
            )
        self.record(Sold(count=count))

    @applies(Sold)
    def _sold(self, event: Sold) -> None:
        self.left -= event.count


class Meet(Command, name="kiosk.meet", aggregate=Stand, key="id"):
    """Sell one, when so many handlers of the process are under way."""

    id: str
    together: int = 1


class Dawdle(Command, name="kiosk.dawdle", aggregate=Stand, key="id"):
    """Wait for longer than a handler may, and clean up."""

    id: str


class BuySoon(Command, name="kiosk.buy_soon", aggregate=Stand, key="id"):
    id: str


class Linger(Command, name="kiosk.linger", aggregate=Stand, key="id"):
    """Leave something behind in the loop."""

    id: str


class SendOn(Command, name="kiosk.send_on", aggregate=Stand, key="id"):
    """Send a command, from a coroutine that the handler has started."""

    id: str


class Buy(Command, name="kiosk.buy", aggregate=Stand, key="id"):
    id: str
    count: int = 1


class Refund(Command, name="kiosk.refund", aggregate=Stand, key="id"):
    """Take one back, if the stand is as it was seen."""

    id: str
    seen_version: int


def stand(session: Session, id: str) -> Stand:
    """Return a stand, a new one if need be."""
    found = session.find(Stand, id)
    if found is None:
        found = Stand(id)
        session.add(found)
    return found


@command_handler(Buy, retry_on=Exception)
def buy(command: Buy, session: Session) -> int:
    it = stand(session, command.id)
    it.sell(command.count)
    return it.left


@command_handler(Refund)
def refund(command: Refund, session: Session) -> None:
    session.get(Stand, command.id, expected_version=command.seen_version).sell(-1)


#: Handlers that are under way in this process, and the gate that opens when there are enough.
under_way: list[str] = []
gates: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}


@command_handler(Meet)
async def meet(command: Meet, session: Session) -> str:
    it = await session.find_async(Stand, command.id) or Stand(command.id)
    session.add(it)
    loop = asyncio.get_running_loop()
    gate = gates.setdefault(loop, asyncio.Event())
    under_way.append(command.id)
    if len(under_way) >= command.together:
        gate.set()
    await gate.wait()
    await asyncio.sleep(0.001)
    it.sell(1)
    assert asyncio.get_running_loop() is loop
    assert current_task.request.id == command.id
    return f"{os.getpid()} {len(gates)}"


@command_handler(BuySoon)
async def buy_soon(command: BuySoon, session: Session) -> None:
    it = await session.find_async(Stand, command.id) or Stand(command.id)
    session.add(it)
    await asyncio.sleep(0.001)
    it.sell(1)


@command_handler(Dawdle, soft_time_limit=1)
async def dawdle(command: Dawdle, session: Session) -> None:
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0)
        with redis.Redis.from_url(os.environ["KIOSK_URL"]) as data:
            data.rpush("kiosk:cleaned up", command.id)


#: What handlers have left behind: the loop alone would forget it.
left: set[asyncio.Task[None]] = set()


@command_handler(Linger)
async def linger(command: Linger) -> None:
    async def wait() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            with redis.Redis.from_url(os.environ["KIOSK_URL"]) as data:
                data.rpush("kiosk:ended", command.id)

    left.add(asyncio.create_task(wait()))
    await asyncio.sleep(0)


@command_handler(SendOn)
async def send_on(command: SendOn, session: Session) -> str:
    async def send() -> str:
        await asyncio.sleep(0)
        return str(Buy(id=command.id).delay().id)

    (sent,) = await asyncio.gather(send())
    return sent


@subscribes(Sold)
async def count_sold(event: Sold, recorded: RecordedEvent[Sold]) -> None:
    await asyncio.sleep(0.001)
    with redis.Redis.from_url(os.environ["KIOSK_URL"]) as data:
        data.rpush("kiosk:sold", recorded.aggregate_id)


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
    made = Celery("kiosk", broker=url, backend=url, set_as_current=False)
    made.conf.update(broker_transport=TRANSPORT, broker_connection_retry_on_startup=True)
    made.conf.update(settings)
    return CQRS(made)


if "KIOSK_URL" in os.environ:
    app = client(os.environ["KIOSK_URL"]).app
    app.set_current()
