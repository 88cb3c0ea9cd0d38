"""Many writers of one SQL store at once, some of which give up, and a reader beside them."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from sqlalchemy import text

from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.errors import LeaseLost
from cqrs_celery.messages.metadata import new_id
from cqrs_celery.store.events import Lease, StoredEvent, StreamAppend
from cqrs_celery.store.relay_ports import LeaseCheck
from cqrs_celery.store.stream import ANY_VERSION, StreamName
from cqrs_celery.testing.event_store_contract import events

#: One commit in so many is given up right before its end.
GIVEN_UP = 5

LEASE = Lease("worker", 1, 1)


@dataclass
class Writers:
    """What was committed, and what the reader has read."""

    store: SqlEventStore
    threads: int
    commits: int
    has_rows: bool = False
    seed: int = 7
    committed: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    read: list[StoredEvent] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, deadline_s: float = 60) -> None:
        """Write and read, until the reader has read everything, or the deadline."""
        streams = [StreamName("shop", "Item", str(n)) for n in range(8)]
        writers = [
            threading.Thread(target=self._write, args=(number, streams), daemon=True)
            for number in range(self.threads)
        ]
        for writer in writers:
            writer.start()
        deadline = time.monotonic() + deadline_s
        while True:
            is_over = not any(writer.is_alive() for writer in writers)
            position = self.read[-1].global_position if self.read else 0
            page = self.store.read_all(after_position=position, limit=50)
            self.read += page
            if (is_over and not page) or time.monotonic() > deadline:
                break
        for writer in writers:
            writer.join(30)

    def _write(self, number: int, streams: list[StreamName]) -> None:
        chance = random.Random(self.seed * 1_000 + number)
        for _ in range(self.commits):
            chosen = chance.sample(streams, chance.choice((1, 1, 1, 2)))
            appends = [
                StreamAppend(stream, ANY_VERSION, events(chance.choice((1, 1, 3))))
                for stream in chosen
            ]
            ids = {event.event_id for append in appends for event in append.events}
            transaction = self.store.begin()
            try:
                if self.has_rows:
                    transaction.connection.execute(
                        text("INSERT INTO own_rows (id) VALUES (:id)"), {"id": new_id()}
                    )
                transaction.append(appends, lease=LEASE)
            except LeaseLost:
                with self._lock:
                    self.given_up |= ids
            else:
                with self._lock:
                    self.committed |= ids
            finally:
                transaction.rollback()

    def check(self) -> None:
        """Check that the reader read what was committed, once, and each stream in order."""
        read = Counter(stored.event.event_id for stored in self.read)
        assert self.given_up
        assert self.committed - read.keys() == set(), "skipped"
        assert read.keys() - self.committed == set(), "not committed"
        assert [event_id for event_id, count in read.items() if count > 1] == [], "doubled"
        positions = [stored.global_position for stored in self.read]
        assert positions == sorted(positions)
        versions: dict[StreamName, int] = {}
        for stored in self.read:
            assert stored.version == versions.get(stored.stream, 0) + 1, "out of order"
            versions[stored.stream] = stored.version
        # and a reader that comes later sees the same
        assert list(self.store.read_all(limit=100_000)) == self.read


def slow_and_unsteady(delay_s: float) -> LeaseCheck:
    """Return a lease check that takes its time, and now and then says no."""
    chance = random.Random(11)

    def check(lease: Lease) -> bool:
        time.sleep(chance.uniform(0, delay_s))
        return chance.randrange(GIVEN_UP) > 0

    return check
