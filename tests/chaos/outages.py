"""Take the server away from workers that are busy: kill it, demote it, fill it, cut it off."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import redis

from tests.chaos.lab import Lab
from tests.nodes import RedisNode, WorkerNode
from tests.proxy import Proxy
from tests.waiting import wait_until

#: Errors of a publish that the publisher sees: it does not know whether it happened.
PUBLISH_ERRORS = (redis.RedisError, OSError)

#: So that a replica needs not wait for others that might come.
AT_ONCE = {"options": {"repl-diskless-sync-delay": "0"}}

POOLS = ("prefork", "solo", "threads", "gevent")

CUT_ROWS = ("outages", "replies swallowed", "messages accepted", "started again", "lost")

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


def replicate(replica: redis.Redis, master: RedisNode | None) -> None:
    """Make a server the replica of another one, or a master."""
    if master is None:
        replica.replicaof("NO", "ONE")
        return
    replica.replicaof("127.0.0.1", master.port)
    wait_until(
        lambda: replica.info("replication")["master_link_status"] == "up", 20, "the replica's link"
    )


def wait_caught_up(replica: redis.Redis, master: redis.Redis) -> None:
    """Wait until a replica has what its master has written so far; WAIT is for one's own writes."""
    written = master.info("replication")["master_repl_offset"]
    wait_until(
        lambda: replica.info("replication")["slave_repl_offset"] >= written, 5, "the replica"
    )


def demote_servers(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Make a server a replica of its own replica under load, and a master again, so many times.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: an accepted message was lost, a task was started twice, or a worker ended.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    started_at = time.monotonic()
    with Lab(folder, lease_s=1, server=AT_ONCE, max_deliveries=1_000) as lab:
        assert lab.node is not None
        other = lab.server(name="other", **AT_ONCE)
        first, second = lab.client, other.client()
        replicate(second, lab.node)
        workers = [
            lab.new_worker("solo", conf={"worker_prefetch_multiplier": 4}),
            lab.new_worker("prefork", pool="prefork", concurrency=2),
        ]
        lab.workers(*workers)
        traffic = Traffic(lab, seen)
        for _ in range(rounds):
            traffic.send(30, kwargs={"seconds": 0.005})
            lab.waits(chance.uniform(0, 0.1))
            # As a planned failover does it: no writes while the replica catches up.
            first.client_pause(200, all=False)
            wait_caught_up(second, first)
            replicate(second, None)
            replicate(first, other)
            for client in first.client_list():
                first.client_unblock(int(client["id"]), error=True)
            lab.waits(chance.uniform(0, lab.lease_s))
            traffic.send(2)
            replicate(first, None)
            replicate(second, lab.node)
            seen["outages"] += 1
            traffic.wait_done(deadline_s=2 * lab.lease_s + 20)
        second.close()
        finish(lab, seen, traffic, workers)
        assert not seen["started again"], f"started more than once: {lab.journal.starts()}"
    return {name: seen[name] for name in OUTAGE_ROWS} | {
        "seconds": round(time.monotonic() - started_at)
    }


def cut_connections(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Cut all connections, or swallow a reply, while everybody publishes and works.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a message was lost, or a task was started more than once.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    started_at = time.monotonic()
    policy = {"max_retries": 5, "interval_start": 0.01, "interval_step": 0.05}
    with Lab(folder, lease_s=5, max_deliveries=1_000) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            workers = [
                lab.new_worker(
                    pool,
                    pool=pool,
                    queues=[pool],
                    concurrency=2 if pool == "prefork" else 1,
                    url=proxy.url(),
                    conf={"worker_prefetch_multiplier": 4},
                )
                for pool in POOLS
            ]
            lab.workers(*workers)
            number = 0
            for _ in range(rounds):
                sent = []
                cuts = sorted(chance.sample(range(40), 3))
                for n in range(40):
                    if n in cuts:
                        if chance.random() < 0.5:
                            # Whichever request comes next, a publish or a take.
                            proxy.swallow_reply_to(b"EVALSHA")
                            seen["replies swallowed"] += 1
                        else:
                            proxy.cut()
                        seen["outages"] += 1
                    number += 1
                    lab.send(
                        number,
                        url=proxy.url(),
                        queue=POOLS[number % len(POOLS)],
                        kwargs={"seconds": chance.choice([0, 0.002, 0.02])},
                        retry=True,
                        retry_policy=policy,
                    )
                    sent.append(number)
                lab.wait_done(*sent, deadline_s=40)
            lab.wait_empty(deadline_s=40)
            for worker in workers:
                assert worker.status == "running", f"{worker.name} ended:\n{worker.log_tail()}"
            starts = lab.journal.starts()
            seen["messages accepted"] = number
            seen["lost"] = number - len(starts)
            seen["started again"] = starts.total() - len(starts)
            again = [line for line in lab.journal.lines() if starts[line.n] > 1]
            assert not again, f"started more than once: {again}"
    seconds = round(time.monotonic() - started_at)
    return {name: seen[name] for name in CUT_ROWS} | {"seconds": seconds}


def finish(lab: Lab, seen: Counter[str], traffic: Traffic, workers: list[WorkerNode]) -> None:
    """Count, and look whether everybody is still at work."""
    for worker in workers:
        assert worker.status == "running", f"{worker.name} ended:\n{worker.log_tail()}"
    seen["messages accepted"] = len(traffic.accepted)
    seen["lost"] = len(traffic.accepted - lab.journal.done())
    starts = lab.journal.starts()
    seen["started again"] = sum(starts.values()) - len(starts)
