"""The transport when its connections are cut: what runs runs on, what waits keeps its order."""

from __future__ import annotations

import itertools
from pathlib import Path

from tests.chaos.lab import QUEUE, Lab
from tests.chaos.outages import cut_connections
from tests.proxy import Proxy
from tests.waiting import wait_until


def test_tasks_run_on_when_their_connections_are_cut_and_the_rest_keeps_its_order(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        # given workers of every pool with a running task and three prefetched behind a proxy
        pools = ("solo", "prefork", "threads", "gevent")
        with Proxy(lab.node.port) as proxy:
            workers = [
                lab.new_worker(
                    pool, pool=pool, queues=[pool], url=proxy.url(),
                    conf={"worker_prefetch_multiplier": 4},
                )
                for pool in pools
            ]  # fmt: skip
            lab.workers(*workers)
            for n in range(8):
                for i, pool in enumerate(pools):
                    lab.send(100 * i + n, queue=pool, kwargs={"gate": "gate"})
            lab.wait_started(*(100 * i for i in range(len(pools))))
            # Those two hand a task on while another one runs, so they hold some that wait.
            client = lab.client
            wait_until(
                lambda: client.llen("prefork") == client.llen("threads") == 4, 10, "the prefetch"
            )
            # when all connections are cut, twice
            for _ in range(2):
                assert proxy.cut() > 0
                lab.waits(lab.lease_s)
            lab.open("gate")
            # then each was started once, in order
            lab.wait_empty(deadline_s=40)
            for i in range(len(pools)):
                mine = [n - 100 * i for n in lab.journal.order() if n // 100 == i]
                assert mine == list(range(8)), pools[i]
            assert {worker.status for worker in workers} == {"running"}


def test_what_a_thread_has_taken_and_not_begun_when_connections_are_cut_starts_once(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given threads that take half a second between taking a task and beginning with it
            conf = {"worker_prefetch_multiplier": 2, "lab_thread_delay_s": 0.5}
            worker = lab.worker("late", url=proxy.url(), pool="threads", concurrency=2, conf=conf)
            for n in range(6):
                lab.send(n)
            wait_until(lambda: worker.logs().count("received") >= 4, 10, "the prefetch")
            assert not lab.journal.starts()
            # when all connections are cut in that time
            assert proxy.cut() > 0
            # then each is started once
            lab.wait_done(*range(6))
            lab.wait_empty(deadline_s=40)
            assert lab.journal.starts() == dict.fromkeys(range(6), 1)


def test_a_worker_comes_back_after_the_network_was_gone_for_three_leases(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given a worker in a task with more prefetched, and another one elsewhere
            cut_off = lab.worker(
                "cut-off", url=proxy.url(), pool="threads", conf={"worker_prefetch_multiplier": 3}
            )
            for n in range(3):
                lab.send(n, kwargs={"gate": "gate"})
            lab.wait_started(0)
            wait_until(lambda: lab.client.llen(QUEUE) == 0, 10, "the prefetch")
            # That one has room for all, as some may be given back while connections are being cut.
            lab.worker("other", pool="threads", concurrency=3)
            # when it alone can't reach Redis for three leases
            proxy.refuse()
            wait_until(lambda: lab.journal.starts()[0] == 2, lab.lease_s + 10, "the takeover")
            lab.waits(lab.lease_s * 3)
            proxy.accept()
            lab.open("gate")
            # then the other one has done its messages
            lab.wait_done(0, 1, 2)
            lab.wait_empty(deadline_s=40)
            # and it takes part again as soon as Celery has tried to connect once more
            numbers = itertools.count(10)

            def has_part() -> bool:
                lab.send(next(numbers), kwargs={"seconds": 0.05})
                return cut_off.pid in {line.pid for line in lab.journal.lines() if line.n >= 10}

            wait_until(has_part, 20, "a task on the worker that was cut off")
            assert "lease lost" in cut_off.logs()
            lab.wait_empty()


def test_no_task_is_lost_or_started_twice_while_connections_are_cut_at_random(
    tmp_path: Path,
) -> None:
    rows = cut_connections(tmp_path, rounds=4, seed=20261124)
    assert rows["outages"] == 12
    assert rows["lost"] == 0
    assert rows["started again"] == 0
