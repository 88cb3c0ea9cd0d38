"""Whatever happens to the servers, and to the relay that leads: each event that is stored is given.

Relays are processes; one queue is drained by the run itself. In each round one thing happens at
random, while events are committed; in the end of the round everything that the store holds must
have been given, and nothing twice, unless the store or the queue has gone back: then what was not
noted as handled comes again.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Self

from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sql.tables import relays
from cqrs_celery.errors import StoreUnavailable
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import ack
from cqrs_celery.store.events import Subscriber
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import append, events
from tests.nodes import REPOSITORY, RedisNode
from tests.postgres import PostgresNode
from tests.proxy import Proxy
from tests.waiting import wait_until

#: Relays at a time.
RELAYS = 2

#: Seconds in which another relay must go on.
TAKEN_OVER_S = 10.0

#: Seconds in which everything must be given after all servers are back.
GIVEN_S = 40.0

APPLICATION = "inventory"
HEAD = ('{"id":"', '","again":"', '","root":"', '","parent":"', '"}')
SUBSCRIBER = Subscriber("task", ("inventory.items_checked_in",), "queue", HEAD)

#: What goes before and behind an event in a message's body.
BODY = ("[[", "],{},{}]")

#: A relay: its store's URL, its queue's.
RELAY = f"""
import logging, sys
import redis
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.workers.relay import Relay

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
store = open_event_store(sys.argv[1])
client = redis.Redis.from_url(sys.argv[2], socket_timeout=5)
queue = RelayQueue(lambda: client, store_id=lambda: store.outbox.store_id, body={BODY!r})
leadership = store.leadership("{APPLICATION}", broker="redis")
Relay(RelayParts(store, queue, "{APPLICATION}", leadership), note_s=0.5).run()
"""


class Server:
    """What the events are in: how it is reached, broken and mended."""

    #: What can happen to it beside what happens to every one.
    blows: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""

    def close(self) -> None:
        """End it."""


class Sqlite(Server):
    """A file, which is copied and put back while nothing runs."""

    blows = ("restore",)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._file = folder / "events.db"
        self.url = f"sqlite:///{self._file}"

    def back_up(self) -> Path:
        """Copy it, whatever is written meanwhile."""
        path = self.folder / "copy.db"
        path.unlink(missing_ok=True)
        with (
            contextlib.closing(sqlite3.connect(self._file)) as source,
            contextlib.closing(sqlite3.connect(path)) as target,
        ):
            source.backup(target)
        return path

    def restore(self, path: Path) -> None:
        """Put a copy in its place."""
        for name in ("-wal", "-shm"):
            Path(f"{self._file}{name}").unlink(missing_ok=True)
        shutil.copy(path, self._file)

    def is_free(self) -> bool:
        """Say whether nobody is in the middle of a write."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=0.5)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True


class Postgres(Server):
    """A server, of which base backups are taken and restored; relays reach it through proxies."""

    blows = ("restore", "kill the database", "cut the leader off")

    def __init__(self, folder: Path, driver: str) -> None:
        super().__init__(folder)
        (folder / "postgres").mkdir()
        self.node = PostgresNode(folder / "postgres")
        self.node.start()
        self.url = self._with(driver, self.node.create_database("wear"))
        self._driver = driver
        self.back_up, self.restored = self.node.back_up, self.node.restore

    def _with(self, driver: str, url: str) -> str:
        return url.replace("postgresql://", f"postgresql+{driver}://")

    def through(self, port: int) -> str:
        """Return the URL by way of a proxy."""
        return self.url.replace(f":{self.node.port}/", f":{port}/")

    def restore(self, folder: Path) -> None:
        """Put a backup in the place of what is there."""
        self.node.kill()
        self.restored(folder)
        self.node.start()

    def close(self) -> None:
        """End it."""
        self.node.teardown()


class Relays:
    """Keep relays running, each a process; for PostgreSQL each behind a proxy of its own."""

    def __init__(self, folder: Path, server: Server, redis_url: str) -> None:
        self._folder, self._server, self._redis_url = folder, server, redis_url
        self._running: list[tuple[subprocess.Popen[bytes], Proxy | None]] = []

    def start(self) -> None:
        """Start as many as are missing."""
        while len(self._running) < RELAYS:
            proxy, url = None, self._server.url
            if isinstance(self._server, Postgres):
                proxy = Proxy(self._server.node.port)
                url = self._server.through(proxy.port)
            with (self._folder / "relays.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-c", RELAY, url, self._redis_url],
                    cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            self._running.append((process, proxy))

    def of(self, pid: int) -> tuple[subprocess.Popen[bytes], Proxy | None] | None:
        """Return one, and its proxy, by its number; None if it is gone."""
        return next((one for one in self._running if one[0].pid == pid), None)

    def kill(self, pid: int) -> None:
        """Kill one with -9."""
        for one in list(self._running):
            process, proxy = one
            if process.pid == pid:
                process.kill()
                process.wait()
                if proxy is not None:
                    proxy.close()
                self._running.remove(one)

    def stop(self) -> None:
        """Kill all."""
        for process, _ in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGCONT)
            self.kill(process.pid)


class Wear:
    """Run servers, relays and a drain, and break them."""

    def __init__(self, folder: Path, server: Server, seed: int) -> None:
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.server = server
        (folder / "redis").mkdir()
        self.redis = RedisNode(folder / "redis")
        self.redis.start()
        opened = open_event_store(server.url)
        assert isinstance(opened, SqlEventStore)
        store = self.store = opened
        create_schema(store)
        self.client = self.redis.client()
        queue = RelayQueue(lambda: self.client, store_id=lambda: store.outbox.store_id, body=BODY)
        self.leadership = store.leadership(APPLICATION, broker="redis")
        self.parts = RelayParts(store, queue, APPLICATION, self.leadership)
        self.parts.register(SUBSCRIBER)
        self.relays = Relays(folder, server, self.redis.url)
        self.given: Counter[str] = Counter()
        self._log = folder / "relays.log"

    def __enter__(self) -> Self:
        self.relays.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and self._log.exists():
            lines = self._log.read_text(errors="replace").splitlines()[-60:]
            error.add_note("\n".join(["--- relays", *lines]))
        self.relays.stop()
        self.store.close()
        self.client.close()
        self.redis.teardown()

    # ------------------------------------------------------------ work

    def commit(self, count: int) -> None:
        """Commit events of a few aggregates, each once, whether the database is there or not."""
        for _ in range(count):
            stream = StreamName(APPLICATION, "Item", str(self.chance.randrange(5)))
            new = events(self.chance.choice((1, 1, 3)))

            def is_there(stream: StreamName = stream, new: Any = new) -> bool:
                with contextlib.suppress(StoreUnavailable):
                    append(self.store, stream, ANY_VERSION, *new)
                    return True
                return False

            wait_until(is_there, 60, "a commit")
            self.seen["commits"] += 1

    def drain(self) -> None:
        """Take what is on the queue, handle it, and note how often each event came, in order."""
        reliable = ReliableQueue(self.client)
        reliable.beat("taker", 60_000, register=True)
        while taken := reliable.settle_and_take(
            "taker", queues=["queue"], count=500, run=500
        ).taken:
            for one in taken:
                body = one.payload.split(b'"', 4)[3].decode()
                self.given[body] += 1
            reliable.settle_and_take("taker", [ack(one.id, one.fence) for one in taken])

    def check(self, *, may_repeat: bool) -> None:
        """Check that everything stored is given, and nothing twice unless that is explained."""

        def is_all_given() -> bool:
            with contextlib.suppress(StoreUnavailable):
                is_settled = self._is_settled()
                self.drain()
                return is_settled and stored() <= self.given.keys()
            return False

        def stored() -> set[str]:
            return {one.event.event_id for one in self.store.read_all(limit=10**6)}

        wait_until(is_all_given, GIVEN_S, "all that is stored to be given")
        again = sum(count - 1 for count in self.given.values())
        if not may_repeat:
            twice = [one for one, count in self.given.items() if count > 1]
            assert not twice, f"given twice without a reason: {twice[:5]}"
        self.seen["given again"] += again
        self.seen["events"] = len(stored())
        # Each round for itself.
        self.given = Counter(self.given.keys())

    def _is_settled(self) -> bool:
        """Say whether the relay that leads now has given the last event that there is now."""
        outbox = self.store.outbox
        last = outbox.place_before(outbox.last_position() + 1)
        token = self.leadership._first("look up the claim", relays.c.token)
        known: Any = self.client.hget("cq:relay", outbox.store_id)
        wanted = f"{last.position}|{last.event_id}|{token[0] if token else ''}|"
        return bool((known or b"").startswith(wanted.encode()))

    # ------------------------------------------------------------ blows

    def leader(self) -> int:
        """Return the process of the relay that leads, once there is one."""

        def found() -> int:
            led = None
            with contextlib.suppress(StoreUnavailable):
                led = self.leadership.led()
            pid = int(led.leader.rpartition(":")[2]) if led is not None and led.is_live else 0
            return pid if self.relays.of(pid) else 0

        return wait_until(found, 30, "a leader")

    def taken_over(self) -> None:
        """Commit, and check that another relay goes on with it in time."""
        self.commit(5)
        wanted = self.store.read_all(after_position=0, limit=10**6)[-1].event.event_id
        began_at = time.monotonic()

        def is_given() -> bool:
            self.drain()
            return wanted in self.given

        wait_until(is_given, TAKEN_OVER_S, "another relay to go on")
        took = round((time.monotonic() - began_at) * 1000)
        self.seen["ms until another relay went on, at most"] = max(
            self.seen["ms until another relay went on, at most"], took
        )

    def blow(self, name: str) -> bool:
        """Do something to somebody; returns whether events may come again for it."""
        self.seen[name] += 1
        may_repeat: bool = getattr(self, "_" + name.replace(" ", "_"))()
        return may_repeat

    def _freeze_the_leader(self) -> bool:
        pid = self.leader()
        while True:
            os.kill(pid, signal.SIGSTOP)
            if not isinstance(self.server, Sqlite) or self.server.is_free():
                break
            # One that is frozen in the middle of a write holds up all, whatever it is.
            os.kill(pid, signal.SIGCONT)
        try:
            self.taken_over()
        finally:
            os.kill(pid, signal.SIGCONT)
        return False

    def _kill_the_leader(self) -> bool:
        self.relays.kill(self.leader())
        self.taken_over()
        self.relays.start()
        return False

    def _cut_the_leader_off(self) -> bool:
        found = self.relays.of(self.leader())
        assert found is not None
        proxy = found[1]
        assert proxy is not None
        proxy.begin_hole(is_losing=True)
        try:
            self.taken_over()
        finally:
            proxy.end_hole()
        # Its connections are lost for good, and it may wait for an answer on one.
        self.relays.kill(found[0].pid)
        self.relays.start()
        return False

    def _freeze_redis(self) -> bool:
        self.redis.freeze()
        self.commit(5)
        self.redis.thaw()
        return False

    def _kill_redis(self) -> bool:
        self.redis.kill()
        self.commit(5)
        self.redis.start()
        self.redis.wait_ready()
        return False

    def _lose_redis(self) -> bool:
        self.client.flushall()
        self.commit(5)
        return True

    def _kill_the_database(self) -> bool:
        assert isinstance(self.server, Postgres)
        self.server.node.kill()
        self.server.node.start()
        return False

    def _restore(self) -> bool:
        server: Any = self.server
        backup = server.back_up()
        self.commit(self.chance.randrange(1, 20))
        if self.chance.random() < 0.7:
            self.check(may_repeat=False)
        if isinstance(server, Sqlite):
            self.relays.stop()
            self.store.close()
        server.restore(backup)
        self.relays.start()
        return True


COMMON = ("freeze the leader", "kill the leader", "freeze redis", "kill redis", "lose redis")


def _wear(server: Server, folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    began = time.monotonic()
    try:
        with Wear(folder, server, seed) as wear:
            wear.commit(5)
            wear.check(may_repeat=False)
            for _ in range(rounds):
                wear.commit(wear.chance.randrange(10))
                may_repeat = wear.blow(wear.chance.choice((*COMMON, *server.blows)))
                wear.commit(wear.chance.randrange(10))
                wear.check(may_repeat=may_repeat)
            seen = wear.seen
    finally:
        server.close()
    blows = (*COMMON, *server.blows)
    return {
        "rounds": rounds,
        **{name: seen[name] for name in blows},
        "commits": seen["commits"],
        "events in the end": seen["events"],
        "given again": seen["given again"],
        "ms until another relay went on, at most": seen["ms until another relay went on, at most"],
        "stored and not given": 0,
        "given twice without a reason": 0,
        "seconds": round(time.monotonic() - began),
    }


def wear_postgresql(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Break what the events are in, the queue, and the relays; with PostgreSQL and psycopg2."""
    return _wear(Postgres(folder, "psycopg2"), folder, rounds, seed)


def wear_psycopg3(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with psycopg 3."""
    return _wear(Postgres(folder, "psycopg"), folder, rounds, seed)


def wear_sqlite(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with SQLite."""
    return _wear(Sqlite(folder), folder, rounds, seed)
