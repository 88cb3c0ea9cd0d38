"""Take the server away from workers that are busy: kill it, demote it, fill it, cut it off."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from tests.chaos.lab import Lab
from tests.nodes import WorkerNode

#: Errors of a publish that the publisher sees: it does not know whether it happened.
PUBLISH_ERRORS = (redis.RedisError, OSError)

OUTAGE_ROWS = ("outages", "messages accepted", "publishes refused", "started again", "lost")


class Traffic:
    """Send numbered tasks, and remember which ones the server has accepted."""

    def __init__(self, lab: Lab, seen: Counter[str]) -> None:
        self._lab = lab
        self._seen = seen
        self.accepted: set[int] = set()
        self._next = 0

    def send(self, count: int, **options: Any) -> None:
        """Send so many tasks, each once."""
        for _ in range(count):
            self._next += 1
            try:
                self._lab.send(self._next, retry=False, **options)
            except Exception as error:  # whatever it is, the publisher knows of it
                if not isinstance(error.__cause__ or error, PUBLISH_ERRORS):
                    raise
                self._seen["publishes refused"] += 1
            else:
                self.accepted.add(self._next)

    def wait_done(self, deadline_s: float) -> None:
        """Wait until all that was accepted is done and settled."""
        self._lab.wait_done(*self.accepted, deadline_s=deadline_s)
        self._lab.wait_empty(deadline_s=deadline_s)


def kill_servers(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill and restart a server that forces each write to the disk, so many times, under load.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: an accepted message was lost, or a worker ended or stopped working.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    started_at = time.monotonic()
    with Lab(folder, lease_s=1, server={"appendfsync": "always"}, max_deliveries=1_000) as lab:
        assert lab.node is not None
        workers = [
            lab.new_worker("solo", conf={"worker_prefetch_multiplier": 4}),
            lab.new_worker("prefork", pool="prefork", concurrency=2),
        ]
        lab.workers(*workers)
        traffic = Traffic(lab, seen)
        for _ in range(rounds):
            traffic.send(30, kwargs={"seconds": 0.005})
            lab.waits(chance.uniform(0, 0.1))
            lab.node.kill()
            if chance.random() < 0.5:
                traffic.send(1)
            else:
                lab.waits(chance.uniform(0, 2 * lab.lease_s))
            lab.node.start()
            seen["outages"] += 1
            # Twice the lease, and the pauses of Celery between its attempts to connect.
            traffic.wait_done(deadline_s=2 * lab.lease_s + 20)
        finish(lab, seen, traffic, workers)
    return {name: seen[name] for name in OUTAGE_ROWS} | {
        "seconds": round(time.monotonic() - started_at)
    }


def finish(lab: Lab, seen: Counter[str], traffic: Traffic, workers: list[WorkerNode]) -> None:
    """Count, and look whether everybody is still at work."""
    for worker in workers:
        assert worker.status == "running", f"{worker.name} ended:\n{worker.log_tail()}"
    seen["messages accepted"] = len(traffic.accepted)
    seen["lost"] = len(traffic.accepted - lab.journal.done())
    starts = lab.journal.starts()
    seen["started again"] = sum(starts.values()) - len(starts)
