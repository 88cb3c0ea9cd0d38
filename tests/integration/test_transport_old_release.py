"""A rolling deployment: workers and senders of the release before run beside those of this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cqrs_celery.queue.inspection import QueueInspector
from cqrs_celery.queue.upkeep import FORMAT
from tests import old_release
from tests.chaos.lab import QUEUE, Lab
from tests.nodes import WorkerNode
from tests.queues import counts_by_scan, counts_kept
from tests.waiting import wait_until

#: Sends tasks by the release before, each in the sequence of its own that the arguments name.
SENDER = """
import json, sys
from pathlib import Path
import cqrs_celery.transport
from celery import Celery

settings, old, queue, tasks = map(json.loads, sys.argv[1:])
assert Path(cqrs_celery.__file__).is_relative_to(old), cqrs_celery.__file__
app = Celery("sender")
app.conf.update(settings)
for number, sequence, kwargs in tasks:
    app.send_task(
        "work", kwargs={"n": number, **kwargs}, headers={"cqrs_sequence": sequence}, queue=queue
    )
"""


class Deployment:
    """A lab with workers and senders of either release.

    Args:
        lab: the server and what runs around it.
        old: the folder with the package of the release before.
    """

    def __init__(self, lab: Lab, old: Path) -> None:
        self.lab = lab
        self.old = old
        self.client: Any = lab.client
        self.sent: list[int] = []
        #: sequence -> the numbers of its tasks in the order in which they were sent
        self.order: dict[str, list[int]] = defaultdict(list)

    def old_worker(self) -> WorkerNode:
        """Start a worker of the release before."""
        worker = self.lab.new_worker("old", pool="prefork", concurrency=2)
        worker._env.update(old_release.environment(self.old, self.lab.folder))
        worker.start()
        worker.wait_ready()
        return worker

    def new_worker(self) -> WorkerNode:
        """Start a worker of this release."""
        return self.lab.worker("new", pool="prefork", concurrency=2)

    def send_old(self, numbers: Iterable[int], **kwargs: Any) -> None:
        """Send tasks by the release before, in four sequences."""
        tasks = [(n, self._note(n, "old"), kwargs) for n in numbers]
        arguments = map(json.dumps, (self.lab.settings(), str(self.old), QUEUE, tasks))
        subprocess.run(
            [sys.executable, "-c", SENDER, *arguments],
            env={**os.environ, **old_release.environment(self.old)},
            cwd=self.lab.folder,
            check=True,
            timeout=60,
        )

    def send_new(self, numbers: Iterable[int], **kwargs: Any) -> None:
        """Send tasks by this release, in four sequences."""
        for n in numbers:
            self.lab.send(n, sequence=self._note(n, "new"), kwargs=kwargs)

    def _note(self, n: int, sender: str) -> str:
        sequence = f"{sender}-{n % 4}"
        self.sent.append(n)
        self.order[sequence].append(n)
        return sequence

    def wait_done(self) -> None:
        """Wait until all that was sent is done, and nothing of it is left."""
        self.lab.wait_done(*self.sent, deadline_s=40)
        self.lab.wait_empty()

    def check_order(self) -> None:
        """Check that each sequence was handled in its order, as each task first began."""
        firsts = list(dict.fromkeys(self.lab.journal.order("start")))
        for sequence, numbers in self.order.items():
            found = [n for n in firsts if n in set(numbers)]
            assert found == numbers, sequence

    def forget_old(self) -> None:
        """Let the time pass for which the upkeep thinks that the release before is there."""
        key = self.lab.queue.key("old_until")
        self.client.set(key, QueueInspector(self.lab.queue).now_ms() - 1)
        while self.lab.queue.upkeep.recount(QUEUE) is None:
            pass

    def check_counts(self) -> None:
        """Check that the counts are what there is, once no worker is taking anything."""
        queue = self.lab.queue
        wait_until(
            lambda: counts_kept(queue, QUEUE) == counts_by_scan(queue, QUEUE),
            10,
            lambda: f"{counts_kept(queue, QUEUE)} to be {counts_by_scan(queue, QUEUE)}",
        )


@pytest.fixture
def deployment(tmp_path: Path, redis_url: str) -> Iterator[Deployment]:
    old = old_release.extract(tmp_path / "old")
    (tmp_path / "lab").mkdir()
    with Lab(tmp_path / "lab", url=redis_url, lease_s=2) as lab:
        yield Deployment(lab, old)


def test_old_and_new_workers_share_the_queue_until_the_old_ones_are_gone(
    deployment: Deployment,
) -> None:
    lab, client = deployment.lab, deployment.client
    # given a worker of the release before, which has worked, and has left work of its sender's
    old = deployment.old_worker()
    deployment.send_old(range(20))
    lab.wait_done(*range(20))
    old_pids = {line.pid for line in lab.journal.lines()}
    assert not client.exists("cq:format")
    deployment.send_old(range(100, 120), gate="first")
    # when a worker of this release comes beside it, and senders of both send
    deployment.new_worker()
    wait_until(lambda: client.hlen("cq:about") == 1, 20, "the new worker to say what it is")
    assert client.zcard("cq:consumers") == 2
    deployment.send_new(range(200, 220), gate="first")
    deployment.send_old(range(300, 320), gate="first")
    # then the new one notices that the old one is there, and counts are right meanwhile
    wait_until(lambda: client.exists("cq:old_until"), 20, "the old worker to be noticed")
    assert int(client.get("cq:format")) == FORMAT
    assert lab.count().in_sequences == 60
    lab.open("first")
    # when the old worker ends in order while there is work
    deployment.send_new(range(400, 440), seconds=0.01)
    deployment.send_old(range(500, 540), seconds=0.01)
    old.stop()
    deployment.wait_done()
    # then both have worked, and every task ran once, in the order of its sequence
    assert old_pids < {line.pid for line in lab.journal.lines()}
    assert lab.journal.starts() == dict.fromkeys(deployment.sent, 1)
    deployment.check_order()
    # and when the old worker has long gone, and a sender of the release before is there still
    deployment.send_new(range(600, 612), gate="last")
    deployment.send_old(range(700, 712), gate="last")
    deployment.forget_old()
    # then the counts are right, and stay so
    assert lab.count().in_sequences == 24
    deployment.check_counts()
    lab.open("last")
    deployment.wait_done()
    deployment.check_counts()
    assert lab.journal.starts() == dict.fromkeys(deployment.sent, 1)


@pytest.mark.parametrize("killed", ["old", "new"])
def test_a_worker_of_either_release_recovers_what_one_of_the_other_held(
    deployment: Deployment, killed: str
) -> None:
    lab = deployment.lab
    # given a worker of each release, both running tasks, with more behind them
    workers = {"old": deployment.old_worker(), "new": deployment.new_worker()}
    deployment.send_old(range(100, 112), gate="go")
    deployment.send_new(range(200, 212), gate="go")
    wait_until(lambda: len(lab.journal.order()) >= 4, 20, "two tasks of each to begin")
    running = lab.journal.order()
    # when one is killed
    workers[killed].kill()
    lab.open("go")
    # then the other one does it all, in order; what was running ran again, and nothing else did
    deployment.wait_done()
    starts = lab.journal.starts()
    assert set(starts) == set(deployment.sent)
    assert {n for n, count in starts.items() if count > 1} <= set(running)
    assert max(starts.values()) <= 2
    deployment.check_order()
    # and when the release before has gone, the counts are right
    workers["old"].stop()
    deployment.forget_old()
    deployment.send_new(range(300, 312), gate="last")
    deployment.check_counts()
