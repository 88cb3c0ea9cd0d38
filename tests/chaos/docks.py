"""An application whose every part is killed: for `tests.chaos.kills`.

Crates are landed, in commits of one or two crates. A commit carries a token, and its committer
announces it in a journal of its own before it begins, and says there how it ended. Three
subscriptions handle each landing: one only looks, one records an event of its own, and one writes a
row of its own. They, too, say so in a journal, in the folder `handled`. A line that was written
before a kill is there after it, since the kernel has it; the kill may tear the last one.

A worker runs `tests.chaos.docks:app`; its folder comes in DOCKS_FOLDER, its settings in DOCKS_CONF.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Event as Flag
from typing import Any, NamedTuple
from uuid import uuid4

from celery import Celery, current_task
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    RecordedEvent,
    Session,
    command_handler,
    subscribes,
)
from cqrs_celery.errors import ConcurrencyError, StoreUnavailable

SUBSCRIPTIONS = ("docks.look", "docks.book", "docks.row")

#: The tables of the application's own, beside the events.
TABLES = (
    "CREATE TABLE deeds (token TEXT NOT NULL)",
    "CREATE TABLE rows_of_events (event_id TEXT NOT NULL)",
)

#: A commit by a session; by one that writes a row of its own first; by a command with a key, which
#: whoever comes next gives again.
PLAIN, ROW, COMMAND = "plain", "row", "command"

#: Seconds for which a crate is landed again and again, so that its stream stays short.
EPOCH_S = 3

#: Crates at a time.
CRATES = 8

#: Seconds between two tries while the database is away.
RETRY_S = 0.05


class Landed(Event, name="docks.landed"):
    token: str


class Booked(Event, name="docks.booked"):
    event_id: str


class Crate(Aggregate, name="ChaosCrate"):
    pass


class Ledger(Aggregate, name="ChaosCrateLedger"):
    pass


class Land(Command, name="docks.land"):
    token: str
    crates: list[str]


def land(session: Session, token: str, crates: list[str]) -> None:
    """Record a landing for each name in the list, which may name a crate several times."""
    for name in crates:
        crate = session.find(Crate, name)
        if crate is None:
            crate = Crate(name)
            session.add(crate)
        crate.record(Landed(token=token))


@command_handler(Land)
def land_by_command(command: Land, session: Session) -> None:
    land(session, command.token, command.crates)


# ---------------------------------------------------------------- subscriptions


class Handling(NamedTuple):
    """Be a line of what was handled: that it began, or came to its end."""

    what: str
    at: float
    subscription: str
    event_id: str
    aggregate: str
    version: int
    pid: int = 0
    message_id: int = 0
    fence: int = 0

    @classmethod
    def from_text(cls, line: str) -> Handling:
        """Read a line."""
        what, at, subscription, event_id, aggregate, *numbers = line.split("\t")
        return cls(what, float(at), subscription, event_id, aggregate, *map(int, numbers))


@cache
def _handled(pid: int) -> int:
    path = Path(os.environ["DOCKS_FOLDER"], "handled", f"{pid}-{time.monotonic_ns()}")
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def note(what: str, subscription: str, recorded: RecordedEvent[Any]) -> None:
    """Add a line, whole, to the journal of this process."""
    _, message_id, fence = current_task.request.properties["delivery_info"]["cqrs_lease"]
    line = Handling(
        what, time.monotonic(), subscription, recorded.event_id, recorded.aggregate_id,
        recorded.version, os.getpid(), message_id, fence,
    )  # fmt: skip
    os.write(_handled(os.getpid()), ("\t".join(map(str, line)) + "\n").encode())


@contextmanager
def noted(subscription: str, recorded: RecordedEvent[Any]) -> Iterator[None]:
    """Note the beginning and the end of a handling; nothing of an end that is an error."""
    note("start", subscription, recorded)
    yield
    note("end", subscription, recorded)


@subscribes(Landed, subscription="docks.look")
def look(event: Landed, recorded: RecordedEvent[Landed]) -> None:
    with noted("docks.look", recorded):
        pass


@subscribes(Landed, subscription="docks.book")
def book(event: Landed, recorded: RecordedEvent[Landed], session: Session) -> None:
    with noted("docks.book", recorded):
        ledger = session.find(Ledger, recorded.aggregate_id)
        if ledger is None:
            ledger = Ledger(recorded.aggregate_id)
            session.add(ledger)
        ledger.record(Booked(event_id=recorded.event_id))


@subscribes(Landed, subscription="docks.row")
def write_row(event: Landed, recorded: RecordedEvent[Landed], session: Session) -> None:
    with noted("docks.row", recorded):
        session.connection.execute(
            text("INSERT INTO rows_of_events VALUES (:id)"), {"id": recorded.event_id}
        )


# ---------------------------------------------------------------- committers


class Deed(NamedTuple):
    """Be a line of a committer: what it is about to commit, or how that ended.

    Attributes:
        what: "about"; then "returned", "refused" (by another writer, nothing was written) or
            "unknown" (the database went away, and the commit was not tried again); or nothing, if
            the committer was killed before.
        token: the commit's.
        kind: plain, row or command.
        crates: one for each event.
    """

    what: str
    token: str
    kind: str
    crates: tuple[str, ...]

    @classmethod
    def from_text(cls, line: str) -> Deed:
        """Read a line."""
        what, token, kind, crates = line.split("\t")
        return cls(what, token, kind, tuple(crates.split(",")))


class Committer:
    """Commit, announcing each commit before, and saying how it ended.

    Args:
        cqrs: the application.
        journal: the file of what is announced and said.
        chance: chooses what is committed.
    """

    def __init__(self, cqrs: CQRS, journal: Path, chance: random.Random) -> None:
        self._cqrs = cqrs
        self._chance = chance
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def commit(self) -> None:
        """Commit something."""
        epoch = int(time.monotonic() // EPOCH_S)
        names = [f"{epoch}-{n}" for n in self._chance.sample(range(CRATES), 2)]
        kind = self._chance.choice((PLAIN, PLAIN, ROW, COMMAND))
        crates = tuple(self._chance.choices(names, k=self._chance.randrange(1, 5)))
        self.carry_out(Deed("about", uuid4().hex, kind, crates))

    def carry_out(self, deed: Deed) -> None:
        """Commit what is to be done."""
        self._note(deed)
        try:
            if deed.kind == COMMAND:
                self._execute(deed)
            else:
                self._commit(deed)
        except ConcurrencyError:
            self._note(deed._replace(what="refused"))
        except (StoreUnavailable, OperationalError):  # of its own statement, SQLAlchemy's
            self._note(deed._replace(what="unknown"))
        else:
            self._note(deed._replace(what="returned"))

    def _commit(self, deed: Deed) -> None:
        session = self._cqrs.session()
        try:
            if deed.kind == ROW:
                session.connection.execute(
                    text("INSERT INTO deeds VALUES (:token)"), {"token": deed.token}
                )
            land(session, deed.token, list(deed.crates))
            if deed.kind == ROW:
                session.commit()  # its rows are gone with its connection
            else:
                self._repeat(session.commit)
        finally:
            session.close()

    def _execute(self, deed: Deed) -> None:
        command = Land(token=deed.token, crates=list(deed.crates))
        for _ in range(self._chance.choice((1, 2))):
            self._repeat(lambda: self._cqrs.execute(command, idempotency_key=deed.token))

    def _repeat(self, work: Any) -> None:
        """Do what bears repetition until the database answers."""
        while True:
            try:
                work()
                return
            except StoreUnavailable:
                Flag().wait(RETRY_S)

    def _note(self, deed: Deed) -> None:
        line = "\t".join((deed.what, deed.token, deed.kind, ",".join(deed.crates)))
        os.write(self._journal, f"{line}\n".encode())


def commit_for_ever(
    folder: str,
    conf: dict[str, Any],
    name: str,
    seed: int,
    again: list[Any],
    pause_s: float,
    gate: str,
) -> None:
    """Commit until killed: first what a killed one has left unknown, then anything.

    Returns at a file `stop` in the folder, too.

    Args:
        folder: of the run.
        conf: the application's settings.
        name: of this committer's journal.
        seed: of what is committed.
        again: commands that another committer has announced, of which it said nothing more.
        pause_s: seconds between two commits, on the average.
        gate: a file in the folder, for which it waits after its first commit; "" for none.
    """
    chance = random.Random(seed)
    committer = Committer(client(**conf), Path(folder, "committed", name), chance)
    committer.commit()  # the first one takes long
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while gate and not Path(folder, gate).exists():
        Flag().wait(0.002)
    for deed in again:
        committer.carry_out(Deed(*deed))
    while not Path(folder, "stop").exists():
        committer.commit()
        if pause_s:
            Flag().wait(chance.uniform(0, 2 * pause_s))


def client(**settings: Any) -> CQRS:
    """Return the application with these settings."""
    app = Celery("docks", set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        task_ignore_result=True,
        cqrs_redrive_first_s=1,
        cqrs_redrive_max_s=2,
    )
    app.conf.update(settings)
    return CQRS(app)


if "DOCKS_CONF" in os.environ:
    app = client(**json.loads(os.environ["DOCKS_CONF"])).app
