"""The application that the worker tests run: boxes that are filled and emptied.

A worker runs `tests.depot:app` on the server in DEPOT_URL, by way of DEPOT_BROKER if that is set; a
test makes its own client of the same application by `client(url)`. What subscribers do is seen in
Redis lists, one a subscription and box, with the versions in the order of handling. Tasks that must
last wait at a gate, a list to push to.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis
from celery import Celery
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Metadata,
    RecordedEvent,
    Session,
    applies,
    command_handler,
    subscribes,
)

NAME = "depot"


class BoxFilled(Event, name="depot.box_filled"):
    count: int


class BoxEmptied(Event, name="depot.box_emptied"):
    pass


class Box(Aggregate, name="DepotBox"):
    count: int = 0

    def fill(self, count: int) -> None:
        self.record(BoxFilled(count=count))

    def empty(self) -> None:
        self.record(BoxEmptied())

    @applies(BoxFilled)
    def _filled(self, event: BoxFilled) -> None:
        self.count += event.count

    @applies(BoxEmptied)
    def _emptied(self, event: BoxEmptied) -> None:
        self.count = 0


class FillBox(Command, name="depot.fill_box", aggregate=Box, key="id"):
    id: str
    count: int = 1


class EmptyBox(Command, name="depot.empty_box", aggregate=Box, key="id"):
    id: str


class FillBoxSlowly(Command, name="depot.fill_box_slowly", aggregate=Box, key="id"):
    id: str
    gate: str


class FillBoxTooSlowly(Command, name="depot.fill_box_too_slowly", aggregate=Box, key="id"):
    id: str


class RefuseBox(Command, name="depot.refuse_box", aggregate=Box, key="id"):
    id: str


class KillWorker(Command, name="depot.kill_worker", aggregate=Box, key="id"):
    id: str


class Ring(Command, name="depot.ring"):
    bell: str


def server() -> redis.Redis:
    """Return a client of the worker's server, which may block for long, and waits for it."""
    return redis.Redis.from_url(
        os.environ["DEPOT_URL"], socket_timeout=None, retry=Retry(ConstantBackoff(0.1), 200)
    )


def box(session: Session, id: str) -> Box:
    """Return a box, a new one if need be."""
    found = session.find(Box, id)
    if found is None:
        found = Box(id)
        session.add(found)
    return found


@command_handler(FillBox)
def fill_box(command: FillBox, session: Session) -> int:
    it = box(session, command.id)
    it.fill(command.count)
    return it.count


@command_handler(EmptyBox)
def empty_box(command: EmptyBox, session: Session) -> None:
    box(session, command.id).empty()


@command_handler(FillBoxSlowly)
def fill_box_slowly(command: FillBoxSlowly, session: Session) -> None:
    with server() as client:
        client.rpush(f"{command.gate}:started", os.getpid())
        client.blpop([command.gate, f"{command.gate}:{os.getpid()}"])  # anyone's, or its own
    box(session, command.id).fill(1)


@command_handler(FillBoxTooSlowly, time_limit=1)
def fill_box_too_slowly(command: FillBoxTooSlowly) -> None:
    signal.pause()


@command_handler(RefuseBox)
def refuse_box(command: RefuseBox, session: Session) -> None:
    it = box(session, command.id)
    it.fill(1000)
    if command.id == "unwritable":
        it.fill("many")  # type: ignore[arg-type]
    raise ValueError(f"the box {command.id} is not ours")


@command_handler(KillWorker)
def kill_worker(command: KillWorker) -> None:
    with server() as client:
        client.incr(f"killed:{command.id}")
    os.kill(os.getpid(), signal.SIGKILL)


@command_handler(Ring)
def ring(command: Ring) -> None:
    with server() as client:
        client.rpush("rung", command.bell)


def _see(subscription: str, recorded: RecordedEvent[Any]) -> None:
    with server() as client:
        client.rpush(f"seen:{subscription}:{recorded.aggregate_id}", recorded.version)


@subscribes(BoxFilled, subscription="depot.shelf")
def shelve(event: BoxFilled, recorded: RecordedEvent[BoxFilled]) -> None:
    with server() as client:
        if client.sismember("broken", f"{recorded.aggregate_id}:{recorded.version}"):
            raise RuntimeError(f"the shelf is broken at {recorded.version}")
    _see("shelf", recorded)


@subscribes(BoxEmptied, subscription="depot.shelf")
def clear_shelf(event: BoxEmptied, recorded: RecordedEvent[BoxEmptied]) -> None:
    _see("shelf", recorded)


@subscribes(BoxFilled)
def order_more_boxes(
    event: BoxFilled, recorded: RecordedEvent[BoxFilled], metadata: Metadata
) -> None:
    if event.count >= 100:
        FillBox(id=f"{recorded.aggregate_id}-overflow").delay()


def client(url: str, **settings: Any) -> CQRS:
    """Return the application on a server; its settings may be other than the worker's."""
    app = Celery(NAME, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_transport_options=json.loads(os.environ.get("DEPOT_OPTIONS", "{}")),
    )
    app.conf.update(settings)
    return CQRS(app)


@contextmanager
def connected(url: str, **settings: Any) -> Iterator[CQRS]:
    """Give a client of the application that is closed at the end, results included."""
    cqrs = client(url, **settings)
    try:
        yield cqrs
    finally:
        # A result that is collected later would ask a server that may be gone.
        consumer = cqrs.app.backend.result_consumer
        consumer.stop()
        consumer.subscribed_to.clear()
        cqrs.app.close()


def seen(client: redis.Redis, subscription: str, id: str) -> list[int]:
    """Return the versions of a box's events in the order in which a subscription handled them."""
    found: Any = client.lrange(f"seen:{subscription}:{id}", 0, -1)
    return [int(version) for version in found]


if "DEPOT_URL" in os.environ:
    app = client(
        os.environ.get("DEPOT_BROKER") or os.environ["DEPOT_URL"],
        **json.loads(os.environ.get("DEPOT_SETTINGS", "{}")),
    ).app
