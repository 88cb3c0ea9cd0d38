"""Whatever happens to the servers, and to the relay that leads: each event that is stored is given.

In each round one thing happens at random, while events are committed; in the end of the round
everything that the store holds must have been given, or handled. Nothing may come twice without a
reason: that the store or the queue has gone back; and where workers handle, that one of them was
lost with the event in hand, or the queue was away.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sql.tables import relays
from cqrs_celery.errors import StoreUnavailable
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import append, events
from tests.chaos.wear_readers import APPLICATION, Readers, Relays, Workers
from tests.chaos.wear_servers import (
    DjangoPostgres,
    DjangoSqlite,
    Pooled,
    Postgres,
    Server,
    Sqlite,
)
from tests.nodes import RedisNode
from tests.waiting import wait_until

#: Seconds in which another relay must go on.
TAKEN_OVER_S = 10.0

#: Seconds in which everything must be given after all servers are back.
GIVEN_S = 40.0

#: Seconds for which Redis is frozen, at most.
FROZEN_S = 4.0


class Wear:
    """Run servers, and processes that relay, and break them.

    Args:
        folder: where everything runs.
        server: has the events.
        readers: makes the processes.
        seed: of what happens.
    """

    def __init__(
        self, folder: Path, server: Server, readers: Callable[..., Readers], seed: int
    ) -> None:
        self.chance = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.server = server
        (folder / "redis").mkdir()
        self.redis = RedisNode(folder / "redis")
        self.redis.start()
        self.redis.wait_ready()
        self.store = server.open()
        create_schema(self.store)
        self.client = self.redis.client()
        self.leadership = self.store.leadership(APPLICATION, broker="redis")
        self.readers = readers(folder, server, self.redis)
        self.given: Counter[str] = Counter()
        self.by: defaultdict[str, set[int]] = defaultdict(set)
        #: in which round a process was last killed, frozen or cut off
        self.struck: dict[int, int] = {}
        self.round = 0

    def __enter__(self) -> Self:
        self.readers.start()
        self.readers.register(self.store)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            error.add_note(f"--- round {self.round}, {self.seen}\n{self.readers.tail()}")
        self.readers.close()
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
                with contextlib.suppress(StoreUnavailable), self.server.committing(self.chance):
                    append(self.store, stream, ANY_VERSION, *new)
                    return True
                return False

            wait_until(is_there, 60, "a commit")
            self.seen["commits"] += 1

    def read(self) -> None:
        """Note how often each event has come, and to whom."""
        for event_id, pid in self.readers.read():
            self.given[event_id] += 1
            self.by[event_id].add(pid)

    def check(self, *, may_repeat: bool) -> None:
        """Check that everything stored has come, and nothing twice unless that is explained."""

        def is_all_given() -> bool:
            with contextlib.suppress(StoreUnavailable):
                is_settled = self._is_settled() and not self.readers.has_more()
                self.read()
                return is_settled and self.stored() <= self.given.keys()
            return False

        wait_until(is_all_given, GIVEN_S, "all that is stored to be given")
        self.readers.check_alive()
        twice = [one for one, count in self.given.items() if count > 1]
        if not may_repeat:
            unexplained = [one for one in twice if not self._was_struck(one)]
            assert not unexplained, f"twice without a reason: {unexplained[:5]}"
        self.seen["again"] += sum(self.given[one] - 1 for one in twice)
        self.seen["events"] = len(self.stored())
        # Each round for itself.
        self.given = Counter(self.given.keys())

    def stored(self) -> set[str]:
        """Return the ids of all events."""
        return {one.event.event_id for one in self.store.read_all(limit=10**6)}

    def _was_struck(self, event_id: str) -> bool:
        """Return whether one of those that had the event was killed or frozen a moment ago."""
        return any(self.struck.get(pid, -9) >= self.round - 1 for pid in self.by[event_id])

    def _is_settled(self) -> bool:
        """Return whether the relay that leads now has given the last event that there is now."""
        outbox = self.store.outbox
        last = outbox.place_before(outbox.last_position() + 1)
        token = self.leadership.rows.first("look up the claim", relays.c.token)
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
            return pid if self.readers.is_one(pid) else 0

        pid = wait_until(found, 30, "a leader")
        self.struck[pid] = self.round
        return pid

    def taken_over(self) -> None:
        """Commit, and check that another relay goes on with it in time."""
        self.commit(5)
        wanted = self.store.read_all(after_position=0, limit=10**6)[-1].event.event_id
        began_at = time.monotonic()

        def is_given() -> bool:
            self.read()
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
        self.readers.kill(self.leader())
        self.taken_over()
        self.readers.start()
        return False

    def _cut_the_leader_off(self) -> bool:
        pid = self.leader()
        proxy = self.readers.proxy_of(pid)
        proxy.begin_hole(is_losing=True)
        try:
            self.taken_over()
        finally:
            proxy.end_hole()
        # Its connections are lost for good, and it may wait for an answer on one.
        self.readers.kill(pid)
        self.readers.start()
        return False

    def _freeze_redis(self) -> bool:
        until = time.monotonic() + self.chance.uniform(0, FROZEN_S)
        self.redis.freeze()
        self.commit(5)
        wait_until(lambda: time.monotonic() >= until, FROZEN_S + 5, "time to pass")
        self.redis.thaw()
        return isinstance(self.readers, Workers)

    def _kill_redis(self) -> bool:
        self.redis.kill()
        self.commit(5)
        self.redis.start()
        self.redis.wait_ready()
        return isinstance(self.readers, Workers)

    def _lose_redis(self) -> bool:
        self.client.flushall()
        self.commit(5)
        return True

    def _kill_the_database(self) -> bool:
        assert isinstance(self.server, Postgres)
        self.server.node.kill()
        self.server.node.start()
        return False

    def _kill_the_pooler(self) -> bool:
        assert isinstance(self.server, Pooled)
        self.server.pooler.kill()
        self.server.pooler.start()
        self.server.pooler.wait_ready()
        return False

    def _restore(self) -> bool:
        server: Any = self.server
        backup = server.back_up()
        self._commit_what_is_lost()
        if isinstance(server, Sqlite):
            self.readers.stop()
            self.store.close()
        server.restore(backup)
        self.readers.start()
        return True

    def _promote_a_lagging_replica(self) -> bool:
        assert isinstance(self.server, Postgres)
        replica = self.server.stand_by()
        self._commit_what_is_lost()
        self.server.promote(replica)
        return True

    def _commit_what_is_lost(self) -> None:
        self.commit(self.chance.randrange(1, 20))
        if self.chance.random() < 0.7:
            self.check(may_repeat=False)


COMMON = ("freeze the leader", "kill the leader", "freeze redis", "kill redis", "lose redis")


def _wear(
    server: Server, readers: Callable[..., Readers], folder: Path, rounds: int, seed: int
) -> dict[str, Any]:
    began = time.monotonic()
    blows = (*COMMON, *server.blows)
    try:
        with Wear(folder, server, readers, seed) as wear:
            wear.commit(5)
            wear.check(may_repeat=False)
            for wear.round in range(1, rounds + 1):
                wear.commit(wear.chance.randrange(10))
                may_repeat = wear.blow(wear.chance.choice(blows))
                wear.commit(wear.chance.randrange(10))
                wear.check(may_repeat=may_repeat)
            seen = wear.seen
    finally:
        server.close()
    verb = "handled" if readers is Workers else "given"
    return {
        "rounds": rounds,
        **{name: seen[name] for name in blows},
        "commits": seen["commits"],
        "events in the end": seen["events"],
        f"{verb} again": seen["again"],
        "ms until another relay went on, at most": seen["ms until another relay went on, at most"],
        f"stored and not {verb}": 0,
        f"{verb} twice without a reason": 0,
        "seconds": round(time.monotonic() - began),
    }


def wear_postgresql(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Break PostgreSQL, the queue, and relays; with psycopg2."""
    return _wear(Postgres(folder, "psycopg2"), Relays, folder, rounds, seed)


def wear_psycopg3(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with psycopg 3."""
    return _wear(Postgres(folder, "psycopg"), Relays, folder, rounds, seed)


def wear_sqlite(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with SQLite."""
    return _wear(Sqlite(folder), Relays, folder, rounds, seed)


def wear_workers_on_postgresql(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Break PostgreSQL, the queue, and workers that relay and handle; with psycopg2."""
    return _wear(Postgres(folder, "psycopg2"), Workers, folder, rounds, seed)


def wear_workers_on_psycopg3(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with psycopg 3."""
    return _wear(Postgres(folder, "psycopg"), Workers, folder, rounds, seed)


def wear_workers_by_sessions(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with PgBouncer in between, which keeps a session's connection."""
    return _wear(Pooled(folder, "psycopg", "session"), Workers, folder, rounds, seed)


def wear_workers_by_transactions(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with PgBouncer in between, which gives a connection to each transaction."""
    return _wear(Pooled(folder, "psycopg2", "transaction"), Workers, folder, rounds, seed)


def wear_workers_on_sqlite(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with SQLite."""
    return _wear(Sqlite(folder), Workers, folder, rounds, seed)


def wear_workers_in_django(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with Django's database, on PostgreSQL."""
    return _wear(DjangoPostgres(folder), Workers, folder, rounds, seed)


def wear_workers_in_django_on_sqlite(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with Django's database, on SQLite."""
    return _wear(DjangoSqlite(folder), Workers, folder, rounds, seed)
