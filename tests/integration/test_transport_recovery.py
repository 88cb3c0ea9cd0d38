"""What dead workers held runs again soon; what lives is left alone, whatever clocks do."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.lab import Lab
from tests.nodes import WorkerNode
from tests.waiting import wait_until


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
