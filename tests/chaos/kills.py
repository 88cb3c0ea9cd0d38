"""Kill whoever commits, relays, keeps the queues or keeps the events, and audit what came of it.

Events are committed in PostgreSQL, and reach three subscriptions through the relay and Redis. All
of it are real processes; what is right is said by `tests.chaos.auditor`, which asks the database.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self, cast

import psutil
import psycopg2

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from tests.chaos.auditor import FOUND, Auditor, read_deeds, read_handlings, read_truth, whole_lines
from tests.chaos.docks import COMMAND, SUBSCRIPTIONS, TABLES, Deed, Handling
from tests.chaos.killing import spin
from tests.chaos.lab import ALONE
from tests.chaos.nursery import Child, Nursery
from tests.nodes import RedisNode
from tests.postgres import PostgresNode
from tests.waiting import wait_until

#: Committers that are killed at a time.
AT_A_TIME = 4

#: Seconds after their start in which they are killed.
LONGEST_S = 0.08

#: Seconds of a lease: what a killed worker held comes back soon.
LEASE_S = 2.0

#: Seconds between two commits of a committer that is not killed, on the average.
PAUSE_S = 0.025

#: Seconds in which everything that is committed must have been handled.
HANDLED_S = 60

#: Events that may wait to be handled when a round begins.
BEHIND = 1_000

#: How Redis comes back: with its data; without the last of what it wrote to its file, as after a
#: power cut; or without anything.
WHOLE, CUT, EMPTY = "with its data", "without its last writes", "without any data"

#: Bytes that its file lacks at most, in the second case.
LONGEST_CUT = 40_000

#: What of PostgreSQL is killed: the whole of it; the postmaster, whose backends then end; or one
#: backend, for which the postmaster ends all others and recovers.
ALL, MASTER, BACKEND = "all processes", "the postmaster", "one backend"

#: Which process, by host and number, has the relay's lease.
_RELAYING = (
    "SELECT leader FROM cqrs_relays"
    " WHERE lease_until_ms > extract(epoch FROM clock_timestamp()) * 1000"
)

#: How long it took until another relay was seen to be active.
MEDIAN, MOST = "ms until another relay was active, median", "ms at most"

COMMON = ("commits", "events", "handlings", "handled again", "effects", *FOUND)


class Docks:
    """Run servers, workers and committers, as long as the context lasts.

    Args:
        folder: where all of them run.
        workers: how many.
        seed: of what is committed.
    """

    def __init__(self, folder: Path, *, workers: int, seed: int) -> None:
        self.folder = folder
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self._began = time.monotonic()
        for name in ("redis", "postgres", "committed", "handled"):
            (folder / name).mkdir()
        self.redis = RedisNode(folder / "redis")
        self.postgres = PostgresNode(folder / "postgres")
        self.workers: dict[str, Child] = {}
        self._workers = workers
        self._stack = contextlib.ExitStack()
        self._sessions: dict[str, str] = {}
        self._committers: list[Child] = []
        self._read: Counter[Path] = Counter()
        self._ended: set[tuple[str, str]] = set()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.callback(self.redis.teardown)
            stack.callback(self.postgres.teardown)
            self.redis.start()
            self.postgres.start()
            self.store = self.postgres.create_database("docks")
            store = cast(SqlEventStore, open_event_store(self.store))
            create_schema(store)
            store.close()
            with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
                for statement in TABLES:
                    cursor.execute(statement)
                cursor.execute("SHOW server_version")
                self.version = str(cursor.fetchone()[0])
            self.conf = {
                "broker_url": self.redis.url,
                "broker_transport_options": {"lease_s": LEASE_S, "max_deliveries": 1_000},
                "cqrs_event_store": self.store,
            }
            self.nursery = stack.enter_context(Nursery(self.folder))
            for number in range(self._workers):
                self.start_worker(f"worker-{number}")
            for worker in self.workers.values():
                worker.wait_said("ready.")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            for name, worker in self.workers.items():
                error.add_note(f"--- {name}, last output\n{worker.tail()}")
            for node in (self.redis, self.postgres):
                error.add_note(f"--- {node.name} ({node.status})\n{node.log_tail(15)}")
        self._stack.close()

    def connect(self) -> Any:
        """Return a connection of the driver's, which commits each statement, once there is one."""

        def connected() -> Any:
            with contextlib.suppress(psycopg2.OperationalError):
                return self.postgres.connect("docks")

        return wait_until(connected, 30, "PostgreSQL to answer")

    # ------------------------------------------------------------ processes

    def start_worker(self, name: str) -> None:
        """Fork a worker; it tells the database who it is."""
        self._sessions[name] = f"{name}.{time.monotonic_ns()}"
        env = {
            "DOCKS_FOLDER": str(self.folder),
            "DOCKS_CONF": json.dumps(self.conf),
            "PGAPPNAME": self._sessions[name],
        }
        argv = ["--pool", "solo", "--hostname", f"{name}@test", *ALONE, "--loglevel", "INFO"]
        function = "tests.chaos.nursery:run_worker"
        self.workers[name] = self.nursery.start(function, "tests.chaos.docks", *argv, env=env)

    def start_committer(
        self, *, again: list[Deed] | None = None, pause_s: float = PAUSE_S, gate: str = ""
    ) -> tuple[Child, Path]:
        """Fork a committer; returns it, and its journal, which may not be there yet."""
        name, seed = f"{len(self._committers)}-committer", self.chance.randrange(10**9)
        child = self.nursery.start(
            "tests.chaos.docks:commit_for_ever",
            str(self.folder), self.conf, name, seed, again or [], pause_s, gate,
        )  # fmt: skip
        self._committers.append(child)
        return child, self.folder / "committed" / name

    def relaying(self) -> str:
        """Return the name of the worker whose relay is active; "" if none is."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(_RELAYING)
            leading = {int(row[0].rpartition(":")[2]) for row in cursor.fetchall()}
        # The lease of one that was killed has not ended yet.
        return next((name for name, one in self.workers.items() if one.pid in leading), "")

    # ------------------------------------------------------------ waiting

    def waits(self, seconds: float) -> None:
        """Let time pass."""
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until, seconds + 5)

    def events(self) -> set[str]:
        """Return the ids of the events that the database holds, once it answers."""

        def read() -> list[str] | None:
            # It may be about to end all connections, since it has lost one of its processes.
            with (
                contextlib.suppress(psycopg2.OperationalError, psycopg2.InterfaceError),
                contextlib.closing(self.connect()) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute("SELECT event_id FROM cqrs_events WHERE type = 'docks.landed'")
                return [row[0] for row in cursor.fetchall()] or [""]
            return None

        return set(wait_until(read, HANDLED_S, "PostgreSQL to answer") or ()) - {""}

    def handled(self) -> set[tuple[str, str]]:
        """Return which subscriptions have handled which events; the journals are read on."""
        for path in (self.folder / "handled").iterdir():
            with path.open("rb") as journal:
                journal.seek(self._read[path])
                new = journal.read()
            new = new[: new.rfind(b"\n") + 1]
            self._read[path] += len(new)
            for line in whole_lines(new):
                one = Handling.from_text(line)
                if one.what == "end":
                    self._ended.add((one.subscription, one.event_id))
        return self._ended

    def wait_handled(self, *, behind: int = 0) -> None:
        """Wait until all that is committed by now is handled by all, but for so many handlings."""
        due = {(name, event_id) for name in SUBSCRIPTIONS for event_id in self.events()}

        def left() -> set[tuple[str, str]]:
            return due - self.handled()

        wait_until(
            lambda: len(left()) <= behind,
            HANDLED_S,
            lambda: f"{len(left())} of {len(due)} handlings, as of {sorted(left())[:3]}",
        )

    def finish(self) -> None:
        """Let everything come to its end, and audit it."""
        last = self._committers[-1]
        assert last.is_alive, f"the committer ended:\n{last.tail()}"
        (self.folder / "stop").touch()
        for committer in self._committers:
            committer.wait_gone(HANDLED_S)
        for name, worker in self.workers.items():
            assert worker.is_alive, f"{name} ended:\n{worker.tail()}"
        self.wait_handled()
        with self.redis.client() as client:
            wait_until(
                lambda: client.hlen("cq:msg") == 0,
                HANDLED_S,
                lambda: f"the queues to be empty: {client.hgetall('cq:msg')!r}",
            )
        with contextlib.closing(self.connect()) as connection:
            truth = read_truth(connection)
        folders = self.folder / "committed", self.folder / "handled"
        auditor = Auditor(truth, read_deeds(folders[0]), read_handlings(folders[1]))
        self.seen.update(auditor.judge())
        self.seen["seconds"] = round(time.monotonic() - self._began)


def kill_committers(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill processes that commit, so many, at random moments.

    The command that a killed one had announced, the next one gives again, with the same key.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a promise was not kept.
    """
    with Docks(folder, workers=2, seed=seed) as docks:
        again: list[Deed] = []
        for first in range(0, rounds, AT_A_TIME):
            gate = f"gate-{first}"
            victims = []
            for number in range(min(AT_A_TIME, rounds - first)):
                given = again if number == 0 else []
                victims.append(docks.start_committer(again=given, pause_s=0, gate=gate))
            for victim, _ in victims:
                victim.wait_said("ready")
            docks.seen["commands given again"] += len(again)
            moments = sorted(docks.chance.uniform(0, LONGEST_S) for _ in victims)
            (folder / gate).touch()
            opened = time.perf_counter()
            for (victim, journal), moment in zip(victims, moments, strict=True):
                spin(moment - (time.perf_counter() - opened))
                victim.kill()
                docks.seen["committers killed"] += 1
                again = unfinished(again, journal)
            docks.wait_handled(behind=BEHIND)
        docks.start_committer(again=again)
        docks.finish()
    names = (
        "committers killed", "killed in a commit", "killed in a commit, and committed",
        "commands given again",
    )  # fmt: skip
    return rows(docks, *names)


def unfinished(again: list[Deed], journal: Path) -> list[Deed]:
    """Return the commands that are still to be given again, now that a committer was killed.

    Args:
        again: those that were so before.
        journal: the committer's.
    """
    said = whole_lines(journal.read_bytes()) if journal.exists() else []
    left = {deed.token: deed for deed in again}
    for deed in map(Deed.from_text, said):
        left.pop(deed.token, None)
        if deed.what == "about":
            left[deed.token] = deed
    return [deed for deed in left.values() if deed.kind == COMMAND]


def kill_relays(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill the worker whose relay is active, so often, while others commit.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a promise was not kept.
    """
    took: list[float] = []
    with Docks(folder, workers=4, seed=seed) as docks:
        docks.start_committer(pause_s=2 * PAUSE_S)
        for _ in range(rounds):
            name = wait_until(docks.relaying, HANDLED_S, "a relay")
            spin(docks.chance.uniform(0, 0.2))
            docks.workers[name].kill()
            began = time.monotonic()
            docks.seen["relays killed"] += 1
            docks.start_worker(name)
            wait_until(docks.relaying, HANDLED_S, "another relay")
            took.append(time.monotonic() - began)
            docks.wait_handled(behind=BEHIND)
        docks.finish()
    docks.seen[MEDIAN] = round(sorted(took)[len(took) // 2] * 1000)
    docks.seen[MOST] = round(max(took) * 1000)
    return rows(docks, "relays killed", MEDIAN, MOST)


def kill_redis(
    folder: Path, *, rounds: int, seed: int, pause_s: float = 2 * PAUSE_S
) -> dict[str, Any]:
    """Kill the server with the queues, so often, while others commit; it comes back in three ways.

    Args:
        folder: where everything runs.
        rounds: kills.
        seed: of their moments, and of what is committed.
        pause_s: seconds between two commits, on the average.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a promise was not kept.
    """
    with Docks(folder, workers=3, seed=seed) as docks:
        docks.start_committer(pause_s=pause_s)
        for number in range(rounds):
            back = (WHOLE, CUT, EMPTY)[number % 3]
            docks.waits(docks.chance.uniform(0.1, 1))
            docks.redis.kill()
            if back == CUT:
                docks.seen["bytes cut off"] += cut_off(docks.redis, docks.chance)
            elif back == EMPTY:
                shutil.rmtree(docks.redis.directory / "appendonlydir")
            docks.waits(docks.chance.uniform(0, 1.5))
            docks.redis.start()
            docks.seen[f"came back {back}"] += 1
            docks.wait_handled()
        docks.finish()
        said = sum(
            worker.log.read_text().count("the queue has lost its data")
            for worker in docks.workers.values()
        )
        assert said >= docks.seen[f"came back {EMPTY}"], f"a loss of data was said {said} times"
    names = (f"came back {WHOLE}", f"came back {CUT}", "bytes cut off", f"came back {EMPTY}")
    return rows(docks, *names)


def cut_off(node: RedisNode, chance: random.Random) -> int:
    """Shorten a dead server's append-only file by a random end; returns how many bytes that was."""
    newest = max(
        (node.directory / "appendonlydir").glob("*.incr.aof"),
        key=lambda path: int(path.name.split(".")[2]),
    )
    size = newest.stat().st_size
    cut = min(size, chance.randrange(LONGEST_CUT))
    with newest.open("r+b") as file:
        file.truncate(size - cut)
    return cut


def kill_postgres(
    folder: Path, *, rounds: int, seed: int, pause_s: float = PAUSE_S
) -> dict[str, Any]:
    """Kill the server with the events, so often, while others commit; in three ways.

    Args:
        folder: where everything runs.
        rounds: kills.
        seed: of their moments, and of what is committed.
        pause_s: seconds between two commits, on the average.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a promise was not kept.
    """
    with Docks(folder, workers=3, seed=seed) as docks:
        docks.start_committer(pause_s=pause_s)
        for number in range(rounds):
            what = (ALL, MASTER, BACKEND)[number % 3]
            docks.waits(docks.chance.uniform(0.1, 1))
            strike(docks.postgres, what, docks.chance)
            docks.seen[f"killed: {what}"] += 1
            if what != BACKEND:
                docks.waits(docks.chance.uniform(0, 1))
                docks.postgres.start()
            docks.wait_handled()
        docks.finish()
    return rows(docks, *(f"killed: {what}" for what in (ALL, MASTER, BACKEND)))


def strike(node: PostgresNode, what: str, chance: random.Random) -> None:
    """Kill some or all of a server's processes; returns when those that must end have ended."""
    if what == BACKEND:
        wait_until(lambda: strike_backend(node, chance), 30, "a backend to be killed")
        return
    children = psutil.Process(node.pid).children(recursive=True)
    if what == ALL:
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
    node.kill()
    wait_until(lambda: not any(child.is_running() for child in children), 30, "the backends to end")


def strike_backend(node: PostgresNode, chance: random.Random) -> bool:
    """Kill a process that serves a client; False if none is there, or it has just ended."""
    try:
        # Their command lines say what they are.
        backends = [
            child
            for child in psutil.Process(node.pid).children(recursive=True)
            if "postgres docks" in " ".join(child.cmdline())
        ]
        if backends:
            chance.choice(backends).kill()
    except psutil.NoSuchProcess:
        return False
    return bool(backends)


def rows(docks: Docks, *names: str) -> dict[str, Any]:
    """Return the rows of a table."""
    counts = {name: docks.seen[name] for name in (*names, *COMMON, "seconds")}
    return {"PostgreSQL": docks.version} | counts
