"""The processes of `tests.chaos.wear` that relay events, and whoever gets them.

Relays alone give to one queue, which the run drains: each event must come exactly once. Workers
relay and handle: a handling may be repeated, as Celery's tasks may, where a worker was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import ack
from cqrs_celery.store.events import Subscriber
from cqrs_celery.transport import TRANSPORT
from tests.chaos.lab import ALONE
from tests.chaos.nursery import Child, Nursery
from tests.chaos.wear_servers import Server
from tests.nodes import REPOSITORY, RedisNode
from tests.proxy import Proxy

#: How many at a time.
PROCESSES = 2

#: Seconds of the lease under which a worker holds messages.
LEASE_S = 2.0

APPLICATION = "inventory"
HEAD = ('{"id":"', '","again":"', '","root":"', '","parent":"', '"}')
SUBSCRIBER = Subscriber("task", ("inventory.items_checked_in",), "queue", HEAD)

#: What goes in front of an event, and behind it, in a message's body.
BODY = ("[[", "],{},{}]")

#: A relay: its store's URL, its queue's, and Django's database if the store is in that.
RELAY = f"""
import logging, sys
import redis
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.relay_queue import RelayQueue
from cqrs_celery.workers.relay import Relay

logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
if sys.argv[3]:
    from tests import playhouse
    playhouse.choose_database(sys.argv[3])
store = open_event_store(sys.argv[1])
client = redis.Redis.from_url(sys.argv[2], socket_timeout=5)
queue = RelayQueue(lambda: client, store_id=lambda: store.outbox.store_id, body={BODY!r})
leadership = store.leadership("{APPLICATION}", broker="redis")
Relay(RelayParts(store, queue, "{APPLICATION}", leadership), note_s=0.5).run()
"""


class Readers(ABC):
    """Processes that relay, each of which reaches the database by a proxy of its own."""

    def __init__(self, folder: Path, server: Server, redis: RedisNode) -> None:
        self.folder, self.server, self.redis = folder, server, redis
        self._proxies: dict[int, Proxy | None] = {}

    def start(self) -> None:
        """Start as many as are missing."""
        while len(self._proxies) < PROCESSES:
            proxy = None if self.server.port is None else Proxy(self.server.port)
            url = self.server.url_by(proxy.port if proxy else None)
            store, django = ("django://default", url) if self.server.is_django else (url, "")
            self._proxies[self._start_one(store, django)] = proxy

    def is_one(self, pid: int) -> bool:
        """Return whether a process is one of them."""
        return pid in self._proxies

    def proxy_of(self, pid: int) -> Proxy:
        """Return by what one reaches the database."""
        proxy = self._proxies[pid]
        assert proxy is not None
        return proxy

    def kill(self, pid: int) -> None:
        """Kill one with -9."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self._kill_one(pid)
        proxy = self._proxies.pop(pid)
        if proxy is not None:
            proxy.close()

    def stop(self) -> None:
        """Kill all."""
        for pid in list(self._proxies):
            self.kill(pid)

    def check_alive(self) -> None:
        """Check that none has ended by itself."""
        for pid in self._proxies:
            assert self._is_alive(pid), f"{pid} has ended:\n{self.tail()}"

    def close(self) -> None:
        """Kill all, for good."""
        self.stop()

    @abstractmethod
    def _start_one(self, store: str, django: str) -> int: ...

    @abstractmethod
    def _kill_one(self, pid: int) -> None: ...

    @abstractmethod
    def _is_alive(self, pid: int) -> bool: ...

    @abstractmethod
    def register(self, store: SqlEventStore) -> None:
        """Make sure that no event is committed before its subscriber is known."""

    @abstractmethod
    def read(self) -> Iterator[tuple[str, int]]:
        """Yield each event's id that was got since, and the process that handled it; 0 for none."""

    def has_more(self) -> bool:
        """Return whether something that was given has still to be handled."""
        return False

    @abstractmethod
    def tail(self) -> str:
        """Return the end of what they have written."""


class Relays(Readers):
    """Relays alone; what they give is taken from the queue here."""

    def __init__(self, folder: Path, server: Server, redis: RedisNode) -> None:
        super().__init__(folder, server, redis)
        self._client = redis.client()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._log = folder / "relays.log"

    def _start_one(self, store: str, django: str) -> int:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", RELAY, store, self.redis.url, django],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self._running[process.pid] = process
        return process.pid

    def _kill_one(self, pid: int) -> None:
        process = self._running.pop(pid)
        process.kill()
        process.wait()

    def _is_alive(self, pid: int) -> bool:
        return self._running[pid].poll() is None

    def register(self, store: SqlEventStore) -> None:
        """Register the subscriber that this run plays."""
        store.outbox.register(APPLICATION, SUBSCRIBER)
        queue = RelayQueue(lambda: self._client, store_id=lambda: store.outbox.store_id, body=BODY)
        queue.register(SUBSCRIBER)

    def read(self) -> Iterator[tuple[str, int]]:
        """Take what is on the queue, handle it, and yield it in order."""
        reliable = ReliableQueue(self._client)
        reliable.beat("taker", 60_000, register=True)
        while taken := reliable.settle_and_take(
            "taker", queues=["queue"], count=500, run=500
        ).taken:
            for one in taken:
                yield one.payload.split(b'"', 4)[3].decode(), 0
            reliable.settle_and_take("taker", [ack(one.id, one.fence) for one in taken])

    def tail(self) -> str:
        """Return the end of their log."""
        if not self._log.exists():
            return ""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-60:])

    def close(self) -> None:
        """Kill all, for good."""
        super().close()
        self._client.close()


class Workers(Readers):
    """Celery workers, which relay and handle, and note in a journal what they have handled."""

    def __init__(self, folder: Path, server: Server, redis: RedisNode) -> None:
        super().__init__(folder, server, redis)
        self._nursery = Nursery(folder)
        self._client = redis.client()
        self._running: dict[int, Child] = {}
        self._journal = folder / "journal"
        self._journal.touch()
        self._read_to = 0
        self._names = 0

    def _start_one(self, store: str, django: str) -> int:
        self._names += 1
        conf = {
            "broker_url": self.redis.url,
            "broker_transport": TRANSPORT,
            "broker_transport_options": {"lease_s": LEASE_S, "max_deliveries": 1_000},
            "cqrs_event_store": store,
        }
        child = self._nursery.start(
            "tests.chaos.nursery:run_worker", "tests.chaos.wear_app",
            *("--pool", "solo", "--hostname", f"w{self._names}@test", *ALONE),
            *("--loglevel", "INFO"),
            env={
                "WEAR_CONF": json.dumps(conf),
                "WEAR_JOURNAL": str(self._journal),
                "WEAR_DJANGO": django,
            },
        )  # fmt: skip
        self._running[child.pid] = child
        return child.pid

    def _kill_one(self, pid: int) -> None:
        self._running.pop(pid).kill()

    def _is_alive(self, pid: int) -> bool:
        return self._running[pid].is_alive

    def register(self, store: SqlEventStore) -> None:
        """Wait until a worker has registered its subscription."""
        for child in self._running.values():
            child.wait_said("ready.")

    def read(self) -> Iterator[tuple[str, int]]:
        """Yield what the journal has more than the last time."""
        with self._journal.open("rb") as journal:
            journal.seek(self._read_to)
            new = journal.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read_to += len(new)
        for line in new.decode().splitlines():
            pid, event_id = line.split()
            yield event_id, int(pid)

    def has_more(self) -> bool:
        """Return whether a message is in a queue, or in a worker's hands."""
        return bool(self._client.exists("cq:msg"))

    def tail(self) -> str:
        """Return the end of what each has written."""
        return "\n".join(f"--- {pid}\n{one.tail()}" for pid, one in self._running.items())

    def close(self) -> None:
        """Kill all, and the process that starts them."""
        super().close()
        self._client.close()
        self._nursery.__exit__()
