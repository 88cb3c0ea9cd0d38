"""The transport in every pool: everything once, in order, and no more in hand than is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.lab import ALONE, QUEUE, Lab
from tests.waiting import wait_until

POOLS = ("prefork", "solo", "threads", "gevent")


@pytest.mark.parametrize("pool", POOLS)
def test_every_pool_runs_everything_once_and_in_order(
    tmp_path: Path, redis_url: str, pool: str
) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given tasks before and after the worker's start
        for n in range(100):
            lab.send(n)
        lab.worker(pool=pool, conf={"worker_prefetch_multiplier": 4})
        for n in range(100, 120):
            lab.send(n)
        # then each runs once, in order
        lab.wait_done(*range(120))
        assert lab.journal.order() == list(range(120))


@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_pool_of_four_runs_four_at_a_time(tmp_path: Path, redis_url: str, pool: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        lab.worker(pool=pool, concurrency=4)
        for n in range(6):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0, 1, 2, 3)
        assert sorted(lab.journal.order()) == [0, 1, 2, 3]
        lab.open("gate")
        lab.wait_done(*range(6))


def test_without_prefetch_nothing_waits_behind_a_running_task(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given a worker of two without prefetch, and five long tasks
        conf = {"worker_prefetch_multiplier": 4}
        lab.worker(
            "one", pool="prefork", concurrency=2, conf=conf,
            arguments=(*ALONE, "--disable-prefetch"),
        )  # fmt: skip
        for n in range(5):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0, 1)
        # then all others wait in Redis, for whoever is free
        client = lab.client
        wait_until(lambda: client.llen(QUEUE) == 3, 10, "three to wait")
        lab.worker("two", pool="prefork", concurrency=2, conf=conf)
        lab.wait_started(2, 3)
        lab.open("gate")
        lab.wait_done(*range(5))
        assert lab.journal.starts() == dict.fromkeys(range(5), 1)


def test_a_child_that_is_replaced_after_each_task_changes_nothing(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        lab.worker(pool="prefork", concurrency=2, conf={"worker_max_tasks_per_child": 1})
        for n in range(12):
            lab.send(n)
        lab.wait_done(*range(12))
        assert lab.journal.starts() == dict.fromkeys(range(12), 1)
        pids = {line.pid for line in lab.journal.lines()}
        assert len(pids) == 12


def test_early_acknowledgements_work_too(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=1) as lab:
        # given a worker that acknowledges before it runs, killed in its task
        conf = {"task_acks_late": False}
        worker = lab.worker(pool="prefork", conf=conf)
        for n in range(3):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        client = lab.client
        wait_until(lambda: client.hlen("cq:msg") == 2, 10, "the acknowledgement")
        worker.kill()
        # then only what had not begun comes again
        lab.open("gate")
        worker.start()
        lab.wait_done(1, 2)
        assert lab.journal.starts() == {0: 1, 1: 1, 2: 1}
