"""How a worker ends, by any of the ways of Celery: nothing lost, the rest given back at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.lab import Lab
from tests.nodes import RedisNode
from tests.waiting import wait_until

POOLS = ("prefork", "solo", "threads", "gevent")

#: Seconds for a worker to end: the prefork pool may wait half a minute for a child's last words.
SHUTDOWN_S = 60


@pytest.mark.parametrize("pool", POOLS)
def test_a_warm_shutdown_ends_what_runs_and_gives_back_the_rest_at_once(
    tmp_path: Path, redis_url: str, pool: str
) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=60) as lab:
        # given a worker in a task with more prefetched
        worker = lab.worker(pool=pool, conf={"worker_prefetch_multiplier": 4})
        for n in range(6):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        # when it is asked to end, and the task does
        worker.kill("SIGTERM")
        if pool != "solo":
            wait_until(lambda: "Warm shutdown" in worker.logs(), 10, "the shutdown to begin")
        lab.open("gate")
        wait_until(lambda: worker.status == "exited", SHUTDOWN_S, "the worker's end")
        done = lab.journal.done()
        assert 0 in done
        # then the next one gets all the rest at once, in order, long before the lease ends
        lab.worker("next")
        lab.wait_done(*range(6))
        assert lab.journal.starts() == dict.fromkeys(range(6), 1)
        assert lab.journal.order() == list(range(6))


def test_a_soft_shutdown_gives_back_what_did_not_end_in_its_time(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=60) as lab:
        # given a worker that waits two seconds for its task, and more prefetched
        conf = {"worker_prefetch_multiplier": 4, "worker_soft_shutdown_timeout": 1}
        worker = lab.worker(pool="prefork", conf=conf)
        for n in range(4):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        # and knows of them all: a signal in the middle of a line of its log is another story
        wait_until(lambda: worker.logs().count("received") >= 4, 10, "all to be prefetched")
        # when it is asked to end at once
        worker.kill("SIGQUIT")
        wait_until(lambda: worker.status == "exited", SHUTDOWN_S, "the worker's end")
        # then the next one gets all of them at once, in order
        lab.open("gate")
        lab.worker("next")
        lab.wait_done(*range(4))
        assert lab.journal.order() == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("pool", POOLS)
def test_a_cold_shutdown_loses_nothing(tmp_path: Path, redis_url: str, pool: str) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=1) as lab:
        worker = lab.worker(pool=pool, conf={"worker_prefetch_multiplier": 4})
        for n in range(4):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        # when it is told to end at once, and then killed, as a container is
        worker.kill("SIGQUIT")
        try:
            wait_until(lambda: worker.status == "exited", 3)
        except AssertionError:
            worker.kill()
        # then the next one does all of them, in order
        lab.open("gate")
        lab.worker("next")
        lab.wait_done(*range(4))
        starts = lab.journal.starts()
        assert starts == {0: 2, 1: 1, 2: 1, 3: 1}


@pytest.mark.parametrize("pool", POOLS)
def test_a_cold_shutdown_ends_a_worker_whose_server_is_away(
    tmp_path: Path, fresh_redis_node: RedisNode, pool: str
) -> None:
    with Lab(tmp_path, url=fresh_redis_node.url, lease_s=1) as lab:
        # given a worker that has lost its connection, and tries to connect again
        worker = lab.worker(pool=pool)
        fresh_redis_node.kill()
        wait_until(lambda: "Trying again in" in worker.logs(), 20, worker.log_tail)
        # when it is told to end at once
        worker.kill("SIGQUIT")
        # then it does, and no error comes out of the shutdown
        wait_until(lambda: worker.status == "exited", SHUTDOWN_S, "the worker's end")
        assert "AttributeError" not in worker.logs()
        assert "NotImplementedError" not in worker.logs()
