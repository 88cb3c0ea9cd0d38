"""One queue is flooded, another one gets a message now and then: how long does that one wait?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import redis

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination, Publish
from tests.chaos import lanes
from tests.nodes import RedisNode, WorkerNode
from tests.waiting import wait_until

#: Messages that the flooded queue has first, and the share of them below which it is filled again.
FLOOD, REFILL_BELOW = 100_000, 0.3

#: The task id of the plain task that is copied.
MODEL_ID = "00000000-0000-0000-0000-000000000000"

#: Seconds that a message may wait at most.
BAR_S = 1.0

#: Concurrency of each pool.
POOLS = {"solo": 1, "prefork": 2, "threads": 8, "gevent": 8}


class Lanes:
    """The two queues of the application, seen from a client."""

    def __init__(self, cqrs: CQRS, node: RedisNode) -> None:
        self._cqrs = cqrs
        self._plain = cqrs.app.tasks["plain"]
        self._gates = 0
        self._model: str | None = None
        self.data: Any = redis.Redis.from_url(node.url, socket_timeout=None)
        self.queue = ReliableQueue(self.data)

    def flood(self, count: int, *, is_plain: bool) -> None:
        """Fill one of the queues."""
        if is_plain:
            self.flood_plain(count)
        else:
            self.flood_events(count)

    def flood_plain(self, count: int) -> None:
        """Send plain tasks: one as Celery makes it, and copies of that with other ids."""
        if self._model is None:
            self._plain.apply_async(task_id=MODEL_ID)
            last = int(self.data.get(self.queue.key("id")))
            self._model = self.queue.read(last)[0].decode()
            self.queue.purge("celery")
        for start in range(0, count, 1_000):
            made = []
            for _ in range(min(1_000, count - start)):
                payload = self._model.replace(MODEL_ID, str(uuid4()))
                made.append(Publish([Destination("celery", payload)]))
            self.queue.publish_many(made)

    def flood_events(self, count: int) -> None:
        """Commit events, a hundred of each aggregate."""
        for start in range(0, count, 1_000):
            with self._cqrs.session() as session:
                for _ in range(min(10, (count - start) // 100)):
                    self._gates += 1
                    gate = lanes.Gate(f"gate-{self._gates}")
                    for _ in range(100):
                        gate.record(lanes.Passed())
                    session.add(gate)

    def send_plain(self, tag: str) -> None:
        """Send one plain task that is heard of."""
        self._plain.delay(tag)

    def send_event(self, tag: str) -> None:
        """Commit one event that is heard of."""
        with self._cqrs.session() as session:
            gate = lanes.Gate(tag)
            gate.record(lanes.Passed(tag=tag))
            session.add(gate)

    def waits_in(self, name: str) -> int:
        """Return how many messages of a queue were not taken yet."""
        count = self.queue.count(name)
        return count.ready + count.in_sequences


@contextmanager
def worker_on(node: RedisNode, folder: Path, pool: str) -> Iterator[WorkerNode]:
    """Run a worker of both queues."""
    worker = WorkerNode(
        folder,
        "tests.chaos.lanes",
        pool=pool,
        concurrency=POOLS[pool],
        arguments=["--without-mingle", "--without-gossip"],
        env={"LANES_URL": node.url},
    )
    folder.mkdir(parents=True)
    worker.start()
    try:
        worker.wait_ready()
        yield worker
    finally:
        worker.teardown()


def starve(
    lanes_: Lanes, *, rounds: int, is_plain_flooded: bool, seed: str, flood: int
) -> tuple[list[float], int]:
    """Send a message to one queue while the other is flooded, again and again.

    Returns:
        How many seconds each one waited, and how many messages the flood still had at least when
        one was handled.
    """
    name = "celery" if is_plain_flooded else lanes.EVENTS
    send = lanes_.send_event if is_plain_flooded else lanes_.send_plain
    waits, least = [], flood
    for number in range(rounds):
        waiting = lanes_.waits_in(name)
        if waiting < flood * REFILL_BELOW:
            lanes_.flood(flood - waiting, is_plain=is_plain_flooded)
            waiting = lanes_.waits_in(name)
        tag, began = f"{seed}-{number}", time.monotonic()
        send(tag)
        found = lanes_.data.blpop(["heard"], timeout=60)
        waits.append(time.monotonic() - began)
        assert found is not None, f"{tag} waited for more than a minute behind {waiting} of {name}"
        assert found[1].decode() == tag, f"{found[1]!r} was heard in place of {tag}"
        least = min(least, lanes_.waits_in(name))
    return waits, least


def starve_one(
    node: RedisNode,
    folder: Path,
    pool: str,
    *,
    is_plain_flooded: bool,
    rounds: int,
    seed: str,
    flood: int = FLOOD,
) -> tuple[list[float], int]:
    """Do so on an emptied server, with a worker of its own; returns what `starve` does."""
    with node.client() as client:
        client.flushall()
    side = Lanes(lanes.connected(node.url), node)
    with worker_on(node, folder / "first", pool):
        # It registers its subscription, and makes the queues.
        wait_until(lambda: side.data.exists("cq:routes:lanes.passed"), 20, "the subscription")
    side.flood(flood, is_plain=is_plain_flooded)
    with worker_on(node, folder / "second", pool):
        return starve(
            side, rounds=rounds, is_plain_flooded=is_plain_flooded, seed=seed, flood=flood
        )


def starve_queues(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Flood plain tasks, then batches, in every pool; return how long the other queue waited."""
    rows: dict[str, Any] = {"rounds": 0, "batch size": lanes.BATCH, "flood": FLOOD}
    node = RedisNode(folder, appendonly=False)
    node.start()
    try:
        for pool in POOLS:
            for is_plain_flooded in (True, False):
                what = "a batch queue behind plain tasks"
                if not is_plain_flooded:
                    what = "plain tasks behind a batch queue"
                waits, least = starve_one(
                    node,
                    folder / f"{pool}-{int(is_plain_flooded)}",
                    pool,
                    is_plain_flooded=is_plain_flooded,
                    rounds=rounds // (2 * len(POOLS)),
                    seed=f"{seed}-{pool}",
                )
                rows["rounds"] += len(waits)
                rows[f"{pool}: {what}, ms waited, median and at most"] = (
                    f"{statistics.median(waits) * 1e3:.0f}, {max(waits) * 1e3:.0f}"
                )
                rows[f"{pool}: {what}, flood at least"] = least
                assert max(waits) <= BAR_S, f"{pool}: {what}: waited {max(waits):.2f} s"
    finally:
        node.teardown()
    return rows
