"""The transport when its server is killed and comes back from its append-only file."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.lab import Lab
from tests.chaos.outages import kill_servers


def test_nothing_is_lost_when_redis_is_killed_and_comes_back_from_its_file(tmp_path: Path) -> None:
    rows = kill_servers(tmp_path, rounds=2, seed=20261124)
    assert rows["outages"] == 2
    assert rows["lost"] == 0


def test_a_task_that_outlasts_an_outage_of_redis_runs_once(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1, server={"appendfsync": "always"}) as lab:
        # given two workers in a task each, one of the workers with two more prefetched
        workers = [
            lab.new_worker(
                "prefork", pool="prefork", queues=["a"], conf={"worker_prefetch_multiplier": 3}
            ),
            lab.new_worker("solo", queues=["b"]),
        ]
        lab.workers(*workers)
        for n in range(4):
            lab.send(n, queue="a", kwargs={"gate": "gate"})
        lab.send(10, queue="b", kwargs={"gate": "gate"})
        lab.wait_started(0, 10)
        # when Redis is away for longer than a lease, and the tasks end after it is back
        assert lab.node is not None
        lab.node.kill()
        lab.waits(lab.lease_s * 2)
        lab.node.start()
        lab.waits(lab.lease_s * 2)
        lab.open("gate")
        # then each has run once, in order
        lab.wait_empty()
        assert lab.journal.starts() == {0: 1, 1: 1, 2: 1, 3: 1, 10: 1}
        assert [n for n in lab.journal.order() if n < 10] == [0, 1, 2, 3]
        # and both workers have stayed
        assert [worker.status for worker in workers] == ["running", "running"]
