"""What dead workers held runs again soon; what lives is left alone, whatever clocks do."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from cqrs_celery.queue.inspection import QueueInspector
from tests.chaos.lab import QUEUE, Lab
from tests.nodes import WorkerNode
from tests.waiting import wait_until

#: A deadline that is generous, and far from the end of a lease of a minute.
LONG_BEFORE_A_LEASE_S = 20

#: Runs a command with processes and mounts of its own.
UNSHARE = ("unshare", "--pid", "--mount", "--fork", "--mount-proc")


def can_unshare() -> bool:
    """Return whether this machine lets us make namespaces."""
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


def locks(folder: Path) -> list[Path]:
    """Return the files that the lab's workers hold or have held locked."""
    return list((folder / "cqrs-celery").iterdir())


def commands(lab: Lab) -> int:
    """Return how many commands the server has run."""
    return int(lab.client.info("stats")["total_commands_processed"])


def wait_for_death(worker: WorkerNode) -> None:
    """Wait until a worker's main process has ended."""
    wait_until(lambda: worker.exit_code is not None, 60, "the death of the worker")


def test_of_five_prefetched_messages_only_the_deadly_one_becomes_a_letter(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1, max_deliveries=3) as lab:
        # given a message that kills its worker, and four that are prefetched behind it
        lab.send(0, "kill")
        for n in range(1, 5):
            lab.send(n)
        # when it has killed as many workers as a message may
        for number in range(3):
            victim = lab.new_worker(f"victim-{number}", conf={"worker_prefetch_multiplier": 5})
            victim.start()
            wait_for_death(victim)
        lab.worker("survivor", conf={"worker_prefetch_multiplier": 5})
        lab.wait_done(1, 2, 3, 4)
        # then it alone is set aside, and the others have run once
        wait_until(lambda: lab.count().dead == 1, 10, "the dead letter")
        lab.waits(0.1)
        assert lab.journal.starts() == {0: 3, 1: 1, 2: 1, 3: 1, 4: 1}


# ---------------------------------------------------------------- the same host


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads"])
def test_a_new_worker_runs_at_once_what_a_killed_one_of_its_host_held(
    tmp_path: Path, pool: str
) -> None:
    with Lab(tmp_path, lease_s=60) as lab:
        # given a worker with one task begun, three prefetched, and others behind them
        conf = {"worker_prefetch_multiplier": 4}
        for n in range(8):
            lab.send(n, kwargs={"gate": "gate"})
        victim = lab.worker("victim", pool=pool, conf=conf)
        lab.wait_started(0)
        wait_until(lambda: lab.client.llen(QUEUE) == 4, 10, "four to be prefetched")
        # when it is killed, and a new one begins
        victim.kill()
        lab.open("gate")
        successor = lab.new_worker("successor", pool=pool, conf=conf)
        successor.start()
        successor.wait_ready(60)
        # then it has all of it, long before the lease ends, ahead of what was behind
        lab.wait_done(*range(8), deadline_s=LONG_BEFORE_A_LEASE_S)
        assert lab.journal.order("start") == [0, *range(8)]
        assert "recovered 4 messages of the lost consumer" in successor.logs()


def test_a_living_worker_runs_soon_what_a_killed_one_of_its_host_held(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=60) as lab:
        # given two workers, of which one runs a task
        victim = lab.worker("victim")
        lab.send(0, kwargs={"gate": "gate"})
        lab.wait_started(0)
        lab.worker("survivor")
        # when that one is killed
        victim.kill()
        lab.open("gate")
        # then the other one has it, long before the lease ends
        lab.wait_done(0, deadline_s=LONG_BEFORE_A_LEASE_S)
        wait_until(lambda: len(locks(tmp_path)) == 1, 10, "the file of the dead to be removed")


def test_a_stopped_worker_is_not_dead_to_its_host(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=60) as lab:
        # given a worker that is stopped in a task
        stopped = lab.worker("stopped", pool="threads")
        lab.send(0, kwargs={"gate": "gate"})
        lab.wait_started(0)
        stopped.freeze()
        # when another one has looked some times
        other = lab.worker("other")
        lab.waits(2)
        # then it has been left alone, and ends its task itself
        stopped.thaw()
        lab.open("gate")
        lab.wait_empty()
        assert lab.journal.starts() == {0: 1}
        assert "recovered" not in other.logs()


class Container(WorkerNode):
    """A worker in a container: with processes of its own, and a folder that nobody else sees.

    Args:
        hidden: the folder.
    """

    hidden: Path

    def command(self) -> list[str]:
        """The arguments of the process to start."""
        script = f'mount -t tmpfs -o mode=700 none {self.hidden} && exec "$@"'
        return [*UNSHARE, "sh", "-c", script, "sh", *super().command()]


@pytest.mark.skipif(not can_unshare(), reason="no namespaces may be made here")
@pytest.mark.parametrize("is_shared", [True, False])
def test_a_killed_container_is_known_at_once_only_by_a_shared_folder(
    tmp_path: Path, is_shared: bool
) -> None:
    hidden, shared = tmp_path / "hidden", tmp_path / "shared"
    hidden.mkdir()
    with Lab(tmp_path, lease_s=3, lock_folder=str(shared if is_shared else hidden)) as lab:
        # given a worker in a container that runs a task, and one outside
        victim = lab.new_worker("victim")
        victim.__class__ = Container
        victim.hidden = hidden  # type: ignore[attr-defined]
        victim.start()
        victim.wait_ready()
        lab.send(0, kwargs={"gate": "gate"})
        lab.wait_started(0)
        lab.worker("survivor")
        # when the container is killed
        victim.kill()
        lab.open("gate")
        ends = lab.queue.lease_ends()
        lab.wait_done(0)
        # then the task is run again at once, or when its lease has ended and a third of one more
        now_ms = QueueInspector(lab.queue).now_ms()
        if is_shared:
            assert now_ms < max(ends.values())
        else:
            assert now_ms > min(ends.values()) + 1_000


# ---------------------------------------------------------------- clocks, and Redis away


def run_three(lab: Lab) -> list[WorkerNode]:
    """Start three workers that are in a task each, and nobody knows by a lock that they live."""
    workers = [lab.new_worker(f"worker-{number}") for number in range(3)]
    lab.workers(*workers)
    for n in range(3):
        lab.send(n, kwargs={"gate": "gate"})
    lab.wait_started(0, 1, 2)
    for path in locks(lab.folder):
        path.unlink()
    return workers


def end_alive(lab: Lab, workers: Sequence[WorkerNode]) -> None:
    """Let the tasks end, and check that each ran once, and nobody was taken for dead."""
    lab.open("gate")
    lab.wait_empty()
    assert lab.journal.starts() == {0: 1, 1: 1, 2: 1}
    for worker in workers:
        assert "recovered" not in worker.logs()
        assert "lease lost" not in worker.logs()


@pytest.mark.parametrize("set_by_s", [3_600, -3_600, 5])
def test_nobody_is_taken_for_dead_when_the_clock_of_redis_is_set(
    tmp_path: Path, set_by_s: int
) -> None:
    with Lab(tmp_path, lease_s=1.5) as lab:
        # given workers that are in a task
        workers = run_three(lab)
        lab.waits(1)
        # when Redis's clock is set: all leases are as if it were the other way round
        key = lab.queue.key("consumers")
        for name, end in lab.queue.lease_ends().items():
            lab.client.zadd(key, {name: end - set_by_s * 1_000}, xx=True)
        lab.waits(lab.lease_s * 2)
        # then all live
        end_alive(lab, workers)


def test_who_died_is_found_though_the_clock_of_redis_was_set_back(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1.5) as lab:
        # given three workers, of which one dies in its task, and nobody can know it by its lock
        victim, *others = run_three(lab)
        victim.kill()
        # when Redis's clock is set back by an hour: its lease lasts as much longer
        (name,) = [n for n in lab.queue.lease_ends() if f":{victim.pid}:" in n]
        lab.client.zincrby(lab.queue.key("consumers"), 3_600_000, name)
        for worker in others:
            worker.freeze()
            worker.thaw()
        lab.worker("observer")
        # then an observer that comes after that finds it in seconds, and it alone
        lab.open("gate")
        lab.wait_done(0, 1, 2, deadline_s=lab.lease_s * 4 / 3 + 20)
        assert sorted(lab.journal.starts().values()) == [1, 1, 2]


def test_nobody_is_taken_for_dead_when_redis_was_away_for_two_leases(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1.5, server={"appendfsync": "always"}) as lab:
        # given workers that are in a task
        workers = run_three(lab)
        assert lab.node is not None
        # when Redis stands still until all leases have ended, and again, killed
        lab.node.freeze()
        lab.waits(lab.lease_s * 2)
        lab.node.thaw()
        lab.waits(lab.lease_s)
        lab.node.kill()
        lab.waits(lab.lease_s * 2)
        lab.node.start()
        lab.node.wait_ready()
        lab.waits(lab.lease_s * 2)
        # then all live
        end_alive(lab, workers)


def test_beats_wait_for_no_answer_longer_than_a_sixth_of_a_lease(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=6, socket_timeout=60) as lab:
        # given a worker whose connections may wait for long
        worker = lab.worker()
        assert lab.node is not None
        # when Redis stands still
        lab.node.freeze()
        # then its beat gives up by itself, again and again
        wait_until(lambda: "could not renew its lease" in worker.logs(), 20, "a beat to give up")
        lab.node.thaw()
        wait_until(lambda: "could renew its lease again" in worker.logs(), 20, "the next beat")
        assert "lease lost" not in worker.logs()
