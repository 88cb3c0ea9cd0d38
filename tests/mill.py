"""The application of the tests about failing handlers: sacks are ground, and flour is booked.

A worker runs `tests.mill:app` on the server in MILL_URL. A handler fails where the hash `broken`
says so: its field is "<subscription>:<sack>:<version>" or "command:<sack>", its value is the
exception's name and how many times it is raised (0: always). What is handled is seen in lists.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import redis
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    RecordedEvent,
    Session,
    applies,
    command_handler,
    subscribes,
)

NAME = "mill"


class Ground(Event, name="mill.ground"):
    grams: int


class Sack(Aggregate, name="Sack"):
    grams: int = 0

    @applies(Ground)
    def _ground(self, event: Ground) -> None:
        self.grams += event.grams


class Grind(Command, name="mill.grind", aggregate=Sack, key="id"):
    """Grind a sack so many times."""

    id: str
    times: int = 1


class TooHot(Exception):
    """Say that grinding must wait."""


class Rotten(Exception):
    """Say that no waiting helps."""


def server() -> redis.Redis:
    return redis.Redis.from_url(os.environ["MILL_URL"], socket_timeout=None)


def fail_if_told(what: str) -> None:
    """Raise what the hash `broken` says for this."""
    with server() as client:
        told: Any = client.hget("broken", what)
        if told is None:
            return
        name, _, times = told.decode().partition(":")
        client.rpush(f"tried:{what}", repr(time.time()))
        if int(times or 0):
            left = int(times) - 1
            if left:
                client.hset("broken", what, f"{name}:{left}")
            else:
                client.hdel("broken", what)
    raise {"TooHot": TooHot, "Rotten": Rotten}[name](f"{what} fails")


@command_handler(Grind, retry_on=TooHot, max_retries=2, retry_jitter=False)
def grind(command: Grind, session: Session) -> int:
    fail_if_told(f"command:{command.id}")
    sack = session.find(Sack, command.id)
    if sack is None:
        sack = Sack(command.id)
        session.add(sack)
    for _ in range(command.times):
        sack.record(Ground(grams=1))
    return sack.grams


def _see(subscription: str, recorded: RecordedEvent[Any]) -> None:
    fail_if_told(f"{subscription}:{recorded.aggregate_id}:{recorded.version}")
    with server() as client:
        client.rpush(f"seen:{subscription}:{recorded.aggregate_id}", recorded.version)
        client.rpush(f"seen:{subscription}", f"{recorded.aggregate_id}:{recorded.version}")


@subscribes(Ground, subscription="mill.flour", max_retries=2, retry_jitter=False, give_up_on=Rotten)
def flour(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    _see("flour", recorded)


@subscribes(Ground, subscription="mill.bran", max_retries=0, on_dead_letter="continue")
def bran(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    _see("bran", recorded)


@subscribes(Ground, subscription="mill.dust", max_retries=0, on_dead_letter="discard_after",
            dead_letter_ttl_s=2)  # fmt: skip
def dust(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    _see("dust", recorded)


@subscribes(Ground, subscription="mill.scale", ordered="subscription", max_retries=0)
def scale(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    _see("scale", recorded)


@subscribes(Ground, subscription="mill.noise", ordered=False, max_retries=0)
def noise(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    _see("noise", recorded)


@subscribes(Ground, subscription="mill.ledger", batch=100, max_retries=0)
def ledger(events: list[RecordedEvent[Ground]]) -> None:
    for recorded in events:
        fail_if_told(f"ledger:{recorded.aggregate_id}:{recorded.version}")
    with server() as client, client.pipeline() as pipe:
        for recorded in events:
            pipe.rpush(f"seen:ledger:{recorded.aggregate_id}", recorded.version)
        pipe.rpush("batches", len(events))
        pipe.execute()
        if client.get("hold"):
            client.blpop(["gate"])


@subscribes(Ground, subscription="mill.echo", max_retries=0)
async def echo(event: Ground, recorded: RecordedEvent[Ground]) -> None:
    await asyncio.sleep(0)
    _see(f"echo:{event.grams}", recorded)


def client(url: str, **settings: Any) -> CQRS:
    """Return the application on a server."""
    app = Celery(NAME, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_transport_options={"lease_s": 1},
    )
    app.conf.update(settings)
    return CQRS(app)


if "MILL_URL" in os.environ:
    app = client(os.environ["MILL_URL"], **json.loads(os.environ.get("MILL_SETTINGS", "{}"))).app
