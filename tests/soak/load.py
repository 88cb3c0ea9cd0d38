"""Servers, workers and work for a soak, and what is sampled of them."""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil

from tests.chaos.lab import Lab
from tests.nodes import WorkerNode
from tests.queues import MAY_STAY
from tests.waiting import wait_until

#: Seconds of a lease.
LEASE_S = 2.0
#: Seconds for which publish ids are remembered: less than the time that does not count.
DEDUP_S = 10
#: Tasks sent in a second, and while workers warm up.
RATE, WARM_UP_RATE = 15, 200
#: Seconds between two kills, on the average.
KILL_EVERY_S = 10.0
#: Tasks in flight above which none is sent: a worker may be away for some time.
MOST_WAITING = 400
#: Seconds in which everything must be done after the last task was sent.
DONE_S = 120.0

#: What may stay when all is done, beside that: how long the workers' own queues live unused.
LIFETIMES = ("cq:lifetime", "cq:expiring")

#: The workers: pool and concurrency; the first ones live, the others are killed.
LIVING = (("solo", 1), ("prefork", 2))
KILLED = (("threads", 2), ("solo", 1))


class Soak:
    """A server, two workers that live and two that are killed again and again.

    Args:
        folder: where everything runs.
        seed: of what is sent, and who is killed when.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.lab = Lab(folder, lease_s=LEASE_S, max_deliveries=1_000, dedup_ttl_s=DEDUP_S)
        self.seen: Counter[str] = Counter()
        self.series: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._random = random.Random(seed)
        self._sent = 0
        self._again: set[int] = set()
        self.living: list[WorkerNode] = []
        self.killed: list[WorkerNode] = []

    def close(self) -> None:
        """End every process."""
        self.lab.close()

    def run(self, seconds: float, sample_s: float, warm_up_tasks: int = 0) -> None:
        """Send tasks and kill workers for some time; then let all work end.

        Args:
            seconds: how long.
            sample_s: seconds between two samples.
            warm_up_tasks: how many are sent before, as fast as workers do them; nobody is killed
                and nothing sampled meanwhile. Celery remembers the last thousands of tasks.

        Raises:
            AssertionError: a task was not done, or something is left of it.
        """
        self.living = [self.lab.new_worker(pool=p, concurrency=n) for p, n in LIVING]
        self.killed = [self.lab.new_worker(pool=p, concurrency=n) for p, n in KILLED]
        self.lab.workers(*self.living, *self.killed)
        self._warm_up(warm_up_tasks)
        began, first = time.monotonic(), self._sent
        until, next_kill, next_sample = began + seconds, began + KILL_EVERY_S / 2, began
        while (now := time.monotonic()) < until:
            if self._sent - first < (now - began) * RATE and self._waiting() < MOST_WAITING:
                self._send()
            if now >= next_kill:
                self._kill_one()
                next_kill = now + self._random.uniform(0.5, 1.5) * KILL_EVERY_S
            if now >= next_sample:
                self.sample(now - began)
                next_sample = now + sample_s
            self.lab.waits(0.02)
        self._finish()

    def _warm_up(self, tasks: int) -> None:
        began = time.monotonic()
        while self._sent < tasks:
            due = min(tasks, int((time.monotonic() - began) * WARM_UP_RATE))
            while self._sent < due and self._waiting() < MOST_WAITING:
                self._send()
            self.lab.waits(0.02)

    def _waiting(self) -> int:
        return int(self.lab.client.hlen(self.lab.queue.key("msg")))

    def _send(self) -> None:
        """Send a task of some kind: plain, in a sequence, delayed, one that retries itself."""
        n, chance = self._sent, self._random.random()
        self._sent += 1
        if chance < 0.5:
            self.lab.send(n, kwargs={"seconds": 0.01})
        elif chance < 0.8:
            self.lab.send(n, sequence=f"item-{self._random.randrange(50)}")
        elif chance < 0.9:
            self.lab.send(n, countdown=self._random.uniform(0.1, 3.0))
        else:
            self.lab.send(n, "again", kwargs={"times": 1, "countdown": 0.2})
        self.seen["sent"] += 1

    def _kill_one(self) -> None:
        """Kill a worker, and start it again; one that has not come back yet is left alone."""
        worker = self._random.choice(self.killed)
        if worker.is_ready():
            worker.kill()
            worker.start()
            self.seen["killed"] += 1

    # ------------------------------------------------------------ samples

    def sample(self, at: float) -> None:
        """Note what memory and keys there are."""
        client: Any = self.lab.client
        for (pool, _), worker in zip(LIVING, self.living, strict=True):
            self._note(f"memory of a {pool} worker, MB", at, memory_of(worker.pid) / 1e6)
        self._note("memory of Redis, MB", at, client.info("memory")["used_memory"] / 1e6)
        space = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
        # Publish ids end by themselves: how many there are follows the rate of the last seconds.
        self._note("keys of Redis that stay", at, space["keys"] - space["expires"])
        fields = sum(client.hlen(key) for key in client.scan_iter("*cq:*", _type="hash"))
        self._note("fields of hashes in Redis", at, fields)
        self.seen["samples"] += 1

    def _note(self, name: str, at: float, value: float) -> None:
        self.series[name].append((round(at, 2), float(value)))

    # ------------------------------------------------------------ the end

    def _finish(self) -> None:
        lab = self.lab
        numbers = set(range(self._sent))
        wait_until(
            lambda: self._waiting() == 0, DONE_S, lambda: f"{self._waiting()} messages to be done"
        )
        missing = numbers - lab.journal.done()
        assert not missing, f"{len(missing)} tasks were never done: {sorted(missing)[:10]}"
        left = [
            name
            for key in lab.client.scan_iter(count=1_000)
            if (name := key.decode()).startswith("cq:")
            and not name.startswith((*MAY_STAY, *LIFETIMES))
        ]
        assert not left, f"keys left over: {left}"
        self.seen["done"] = len(numbers)


def memory_of(pid: int) -> int:
    """Return the bytes that a process and its children hold, those that they share once."""
    main = psutil.Process(pid)
    return sum(_share(one) for one in [main, *main.children(recursive=True)])


def _share(process: psutil.Process) -> int:
    """Return the bytes of a process, each divided by how many processes share it."""
    try:
        return int(process.memory_full_info().pss)
    except psutil.NoSuchProcess:
        return 0
