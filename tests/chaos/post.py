"""An application whose workers are killed and frozen: for `tests.chaos.subscriptions`.

Parcels are scanned and moved. Three subscriptions see it, of which one books it in the event store.
What each function does it notes in the folder `journal` in POST_FOLDER, which the library knows
nothing of: a line when it starts, and one when it fails or has come to its end. Each process has a
file of its own, since a kill may tear its last line.

A worker runs `tests.chaos.post:app`. Its settings come in POST_CONF, the name of its host in
POST_HOST, in POST_SLOW how often a function takes its time, up to how many seconds. In the folder,
`poison.json` says which events always fail.
"""

from __future__ import annotations

import json
import logging
import os
import random
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery, current_task

from cqrs_celery import CQRS, Aggregate, Event, RecordedEvent, Session, subscribes
from tests.telling import tell_more

#: The subscription that commits what it sees.
BOOK = "post.book"

SUBSCRIPTIONS = (BOOK, "post.map", "post.bill")

MAX_RETRIES = 1

#: Seconds until a dead letter is tried again for the first time.
FIRST_REDRIVE_S = 1

#: How often a function fails without reason, and how often with an event that is hard to handle.
BAD_LUCK, HARD_LUCK = 0.01, 0.6

#: One in so many events is hard to handle.
HARD_ONE_IN = 250


class Scanned(Event, name="post.scanned"):
    by: str


class Moved(Event, name="post.moved"):
    to: str


class Booked(Event, name="post.booked"):
    version: int
    attempt: str


class Parcel(Aggregate, name="ChaosParcel"):
    pass


class Ledger(Aggregate, name="ChaosLedger"):
    pass


class Unlucky(Exception):
    """Say that nothing is wrong."""


class Line(NamedTuple):
    """Be one line of the journal; what comes after `at` stands with a start alone."""

    what: str
    attempt: str
    at: float
    subscription: str = ""
    aggregate: str = ""
    version: int = 0
    retries: int = 0
    worker: str = ""
    group: int = 0
    pid: int = 0
    message_id: int = 0
    #: by which the system knows it: greenlets share one
    thread: int = 0

    @classmethod
    def from_text(cls, text: str) -> Line:
        """Read a line."""
        what, attempt, at, *rest = text.split("\t")
        if not rest:
            return cls(what, attempt, float(at))
        subscription, aggregate, version, retries, worker, group, pid, message_id, thread = rest
        return cls(
            what, attempt, float(at), subscription, aggregate, int(version), int(retries), worker,
            int(group), int(pid), int(message_id), int(thread),
        )  # fmt: skip


def _journal(pid: int) -> int:
    # One file a process: whoever reads them as they grow must not find an end before its start.
    with _opening:
        return _journal_of(pid)


_opening = threading.Lock()


@cache
def _journal_of(pid: int) -> int:
    path = _folder() / "journal" / f"{pid}-{time.monotonic_ns()}"
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@cache
def _folder() -> Path:
    return Path(os.environ["POST_FOLDER"])


@cache
def _poison() -> dict[str, int]:
    found: dict[str, int] = json.loads((_folder() / "poison.json").read_text())
    return found


@cache
def _slowness() -> tuple[float, float]:
    one_in, _, seconds = os.environ["POST_SLOW"].partition(":")
    return float(one_in), float(seconds)


def lines_of(text: str) -> list[Line]:
    """Return the lines of a process's journal, without one that was torn at its end."""
    return [Line.from_text(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def note(what: str, attempt: str, *facts: object) -> None:
    """Add a line to the journal, whole."""
    line = "\t".join(map(str, (what, attempt, time.monotonic(), *facts)))
    os.write(_journal(os.getpid()), f"{line}\n".encode())


def handle(subscription: str, recorded: RecordedEvent[Any], session: Session | None = None) -> None:
    """Do what a subscription's function does, with luck."""
    attempt, request = uuid4().hex[:16], current_task.request
    aggregate, version = recorded.aggregate_id, recorded.version
    message_id = request.properties["delivery_info"]["cqrs_lease"][1]
    note(
        "start", attempt, subscription, aggregate, version, request.retries, request.hostname,
        os.getpgid(0), os.getpid(), message_id, threading.get_native_id(),
    )  # fmt: skip
    luck, name = random.SystemRandom(), f"{subscription}:{aggregate}"
    one_in, seconds = _slowness()
    if not luck.randrange(int(one_in)):
        time.sleep(luck.uniform(0, seconds))
    is_hard = not random.Random(f"{name}:{version}").randrange(HARD_ONE_IN)
    is_poison = _poison().get(name) == version
    if is_poison or luck.random() < (HARD_LUCK if is_hard else BAD_LUCK):
        note("fail", attempt)
        raise Unlucky(f"{name}:{version}")
    if session is not None:
        ledger = session.find(Ledger, aggregate)
        if ledger is None:
            ledger = Ledger(aggregate)
            session.add(ledger)
        ledger.record(Booked(version=version, attempt=attempt))
    note("end", attempt)


OPTIONS: dict[str, Any] = {"max_retries": MAX_RETRIES, "retry_backoff": 1, "retry_backoff_max": 1}


@subscribes(Scanned, subscription="post.book", **OPTIONS)
def book_scan(event: Scanned, recorded: RecordedEvent[Any], session: Session) -> None:
    handle("post.book", recorded, session)


@subscribes(Moved, subscription="post.book", **OPTIONS)
def book_move(event: Moved, recorded: RecordedEvent[Any], session: Session) -> None:
    handle("post.book", recorded, session)


@subscribes(Scanned, subscription="post.map", **OPTIONS)
def map_scan(event: Scanned, recorded: RecordedEvent[Any]) -> None:
    handle("post.map", recorded)


@subscribes(Moved, subscription="post.map", **OPTIONS)
def map_move(event: Moved, recorded: RecordedEvent[Any]) -> None:
    handle("post.map", recorded)


@subscribes(Scanned, Moved, subscription="post.bill", **OPTIONS)
def bill(event: Scanned | Moved, recorded: RecordedEvent[Any]) -> None:
    handle("post.bill", recorded)


def client(url: str, **settings: Any) -> CQRS:
    """Return the application on a server."""
    app = Celery("post", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        cqrs_redrive_first_s=FIRST_REDRIVE_S,
        cqrs_redrive_max_s=2,
    )
    app.conf.update(settings)
    return CQRS(app)


if "POST_CONF" in os.environ:
    system, _, *rest = os.uname()
    _uname = os.uname_result((system, os.environ["POST_HOST"], *rest))
    os.uname = lambda: _uname

    tell_more()
    # Two lines a task would take a third of its time.
    for name in ("celery.app.trace", "celery.worker.strategy"):
        logging.getLogger(name).setLevel(logging.WARNING)
    app = client(**json.loads(os.environ["POST_CONF"])).app
