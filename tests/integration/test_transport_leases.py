"""The transport's leases: they last as long as a task does, by Redis's clock, and no longer."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.lab import QUEUE, Lab
from tests.waiting import wait_until

#: Short, since a test must last many of them; renewed three times in it.
LEASE_S = 0.5

POOLS = ("prefork", "solo", "threads", "gevent")


def test_a_task_of_more_than_20_leases_runs_once_in_every_pool(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=LEASE_S) as lab:
        # given a worker of each pool and a second one beside it that would take over
        workers = [lab.new_worker(pool, pool=pool, queues=[pool]) for pool in POOLS]
        rivals = [lab.new_worker("rival", pool="threads", queues=POOLS, concurrency=8)]
        lab.workers(*workers)
        # when each runs a task that is longer than 20 leases
        for n, pool in enumerate(POOLS):
            lab.send(n, queue=pool, kwargs={"seconds": LEASE_S * 21})
        lab.wait_started(*range(len(POOLS)))
        lab.workers(*rivals)
        lab.wait_empty(deadline_s=LEASE_S * 21 + 20)
        # then it has run once, and nobody thought its lease lost
        assert lab.journal.starts() == dict.fromkeys(range(len(POOLS)), 1)
        assert lab.journal.done() == set(range(len(POOLS)))
        assert not [w.name for w in workers if "lease lost" in w.logs()]


def test_a_worker_that_was_frozen_longer_than_its_lease_is_fenced_and_told(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given a worker that is frozen in a task, with another message prefetched
        frozen = lab.worker("frozen", pool="threads", conf={"worker_prefetch_multiplier": 2})
        lab.send(0, kwargs={"gate": "gate"})
        lab.send(1)
        lab.wait_started(0)
        wait_until(lambda: lab.client.llen(QUEUE) == 0, 10, "the second message to be prefetched")
        frozen.freeze()
        # when another worker has taken over, and the frozen one goes on and ends its task
        second = lab.worker("second")
        wait_until(lambda: lab.journal.starts()[0] == 2, lab.lease_s + 10, "the takeover")
        frozen.thaw()
        wait_until(lambda: "lease lost" in frozen.logs(), 10, "the frozen worker to be told")
        assert [line for line in lab.journal.lines() if line.event == "done"] == []
        lab.open("gate")
        lab.wait_empty()
        # then the late acknowledgement counted nothing, and each message was settled once
        lab.wait_done(0, 1)
        assert lab.journal.starts()[0] == 2
        assert lab.count() == (0, 0, 0, 0, 0, 0)
        # and both go on working
        for n in range(10, 30):
            lab.send(n, kwargs={"seconds": 0.05})
        lab.wait_empty()
        by_worker = {line.pid for line in lab.journal.lines() if line.n >= 10}
        assert by_worker == {frozen.pid, second.pid}


def test_a_worker_whose_clock_is_an_hour_off_steals_nothing_and_loses_nothing(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given workers an hour ahead, an hour behind, and right
        workers = [
            lab.new_worker("ahead", clock_s=3600),
            lab.new_worker("behind", clock_s=-3600),
            lab.new_worker("right"),
        ]
        lab.workers(*workers)
        # when each of them is in a task for three leases, with another one waiting
        for n in range(4):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0, 1, 2)
        lab.waits(lab.lease_s * 3)
        assert lab.journal.starts() == {0: 1, 1: 1, 2: 1}
        lab.open("gate")
        lab.wait_empty()
        # then each task has run once, nobody has recovered anything, and nothing was lost
        assert lab.journal.starts() == {0: 1, 1: 1, 2: 1, 3: 1}
        for worker in workers:
            assert "recovered" not in worker.logs()
            assert "lease lost" not in worker.logs()
        # and a retry with a countdown comes on time, whatever the clock of who sends it
        workers[2].stop()
        for n in (10, 11, 12, 13):
            lab.send(n, "again", kwargs={"countdown": 1})
        lab.wait_done(10, 11, 12, 13)
        lines = lab.journal.lines()
        for n in (10, 11, 12, 13):
            retried, again = [line.at for line in lines if line.n == n and line.event == "start"]
            assert 0.9 <= again - retried <= 10
