"""The transport when workers are killed: nothing is lost, and all comes back to its place."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.chaos.killing import kill_around_takes, kill_publishers
from tests.chaos.lab import QUEUE, Lab
from tests.queues import in_flight
from tests.waiting import wait_until


def test_a_message_whose_worker_was_killed_comes_back_in_time_once_at_its_old_place(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given a worker in the middle of the first of five tasks, and one that takes none of them
        for n in range(5):
            lab.send(n, kwargs={"gate": "gate"})
        worker = lab.worker()
        lab.wait_started(0)
        lab.worker(queues=["other"])
        # when the first worker is killed
        killed_at = time.monotonic()
        worker.kill()
        # then its message stands first again within the lease and 10 s
        client = lab.client
        wait_until(lambda: client.llen(QUEUE) == 5, lab.lease_s + 10, "the message to be back")
        assert time.monotonic() - killed_at <= lab.lease_s + 10
        assert [int(i) for i in client.lrange(QUEUE, 0, -1)] == [5, 4, 3, 2, 1]
        # and the next worker runs all five in order
        lab.open("gate")
        worker.start()
        lab.wait_empty()
        assert lab.journal.order("start") == [0, 0, 1, 2, 3, 4]
        assert lab.journal.order("done") == [0, 1, 2, 3, 4]


def test_messages_of_a_sequence_wait_for_the_one_whose_worker_was_killed(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given three messages of one sequence, the first in a worker's hands
        for n in range(3):
            lab.send(n, sequence="item-1", kwargs={"gate": "gate"})
        victim = lab.worker()
        lab.wait_started(0)
        # when another worker comes and the first one is killed
        lab.worker()
        victim.kill()
        # then the other worker starts with the killed one's message
        wait_until(lambda: lab.journal.starts()[0] == 2, lab.lease_s + 10, "the second start")
        lab.open("gate")
        lab.wait_empty()
        assert lab.journal.order("start") == [0, 0, 1, 2]


@pytest.mark.alone  # measures time
def test_a_delayed_message_comes_in_time_though_workers_that_waited_too_were_killed(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, lease_s=60) as lab:
        # given three workers that wait
        workers = [lab.worker() for _ in range(3)]
        idle = lab.queue.key("idle")
        wait_until(lambda: lab.client.scard(idle) == 3, 20, "all of them to wait")
        # when two of them are killed, and delayed messages are sent
        for worker in workers[:2]:
            worker.kill()
        for n in range(3):
            sent_at = time.monotonic()
            lab.send(n, countdown=1)
            # then the third one runs each when it is due, at most a second late
            lab.wait_started(n)
            assert time.monotonic() - sent_at < 5


def test_nothing_is_lost_when_workers_are_stopped_and_killed_around_a_take(tmp_path: Path) -> None:
    rows = kill_around_takes(tmp_path, rounds=24, seed=20261124)
    assert rows["rounds"] == 24
    assert rows["lost"] == 0


def test_a_topic_publish_is_on_all_its_queues_or_on_none_when_the_publisher_is_killed(
    tmp_path: Path,
) -> None:
    rows = kill_publishers(tmp_path, rounds=10, seed=20261124)
    assert rows["messages"] > 10
    assert rows["on some of their queues only"] == 0


def test_a_message_that_kills_its_worker_each_time_becomes_a_dead_letter(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1, max_deliveries=3) as lab:
        # given a worker that somebody starts again whenever it dies, and a bystander
        lab.worker(queues=["other"])
        worker = lab.worker()
        # when a task kills it, with another one behind it
        lab.send(0, "kill")
        lab.send(1)
        for _ in range(2):
            wait_until(lambda: worker.status == "exited", 20, "the worker's death")
            wait_until(lambda: lab.client.llen(QUEUE) == 2, 20, "the message to be back")
            worker.start()
        # then the third death is its last
        wait_until(lambda: lab.count().dead == 1, 20, "the dead letter")
        letter = next(lab.queue.letters.all(QUEUE))
        assert letter.tries == 3
        assert json.loads(letter.why) == {
            "reason": "delivered too often: its worker was lost each time"
        }
        assert b'"task":"kill"' in letter.payload
        # and the one behind it is done
        worker.start()
        lab.wait_done(1)
        assert lab.journal.starts() == {0: 3, 1: 1}


@pytest.mark.parametrize(("pool", "concurrency"), [("solo", 1), ("threads", 2)])
def test_what_was_prefetched_behind_a_deadly_message_is_not_buried_with_it(
    tmp_path: Path, pool: str, concurrency: int
) -> None:
    with Lab(tmp_path, lease_s=1, max_deliveries=3) as lab:
        # given a deadly task, and six behind it of which the worker prefetches the most
        lab.worker(queues=["other"])
        lab.send(0, "kill")
        for n in range(1, 7):
            lab.send(n, kwargs={"gate": "later"})
        # when three workers die of it, with all that they had
        worker = lab.new_worker(
            pool=pool, concurrency=concurrency, conf={"worker_prefetch_multiplier": 6}
        )
        for death in range(1, 4):
            worker.start()
            wait_until(lambda: worker.status == "exited", 20, "the worker's death")
            gone = concurrency if death == 3 else 0
            wait_until(lambda: lab.client.llen(QUEUE) == 7 - gone, 20, "the rest to be back")  # noqa: B023
        # then it is a dead letter, with no more than what ran in the other slots each time
        buried = sorted(letter.id for letter in lab.queue.letters.all(QUEUE))
        assert buried == list(range(1, concurrency + 1))
        # and what was prefetched behind them counts nothing, and runs
        assert set(lab.client.hgetall("cq:tries")) <= {b"%d" % number for number in buried}
        lab.open("later")
        worker.start()
        lab.wait_done(*range(concurrency, 7))
        assert lab.count().dead == concurrency


def test_what_was_done_before_a_deadly_message_is_not_buried_in_its_place(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1, max_deliveries=3) as lab:
        # given three quick tasks in front of a deadly one, all prefetched by a solo worker
        lab.worker(queues=["other"])
        for n in range(3):
            lab.send(n)
        lab.send(3, "kill")
        worker = lab.new_worker(conf={"worker_prefetch_multiplier": 4})
        # when workers die of it until it is a dead letter
        for _ in range(12):
            worker.start()
            wait_until(lambda: worker.status == "exited", 20, "the worker's death")
            wait_until(lambda: not in_flight(lab.client), 20, "the recovery")
            if lab.count().dead:
                break
        # then that is the deadly one, and each of the others is done
        assert [letter.id for letter in lab.queue.letters.all(QUEUE)] == [4]
        assert {0, 1, 2} <= lab.journal.done()


def test_a_message_that_kills_its_pool_process_each_time_becomes_a_dead_letter(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path, max_deliveries=3) as lab:
        # given a prefork worker that puts back what a lost child was doing
        lab.worker(pool="prefork", conf={"task_reject_on_worker_lost": True})
        # when a task kills its child, with another one behind it
        lab.send(0, "kill")
        lab.send(1)
        # then it comes back to its place until it is a dead letter
        wait_until(lambda: lab.count().dead == 1, 30, "the dead letter")
        lab.wait_done(1)
        letter = next(lab.queue.letters.all(QUEUE))
        assert json.loads(letter.why) == {"reason": "delivered too often", "deliveries": 3}
        # and the message behind it has waited for it
        assert lab.journal.order("start") == [0, 0, 0, 1]


def test_a_killed_worker_that_comes_back_gets_its_own_messages_again(tmp_path: Path) -> None:
    with Lab(tmp_path, lease_s=1) as lab:
        # given the only worker, killed in a task with three more prefetched
        worker = lab.worker(conf={"worker_prefetch_multiplier": 4})
        for n in range(6):
            lab.send(n, kwargs={"gate": "gate"})
        lab.wait_started(0)
        worker.kill()
        # when it is started again, without anybody else
        lab.open("gate")
        worker.start()
        # then all is done, what it held in order
        lab.wait_empty(deadline_s=lab.lease_s * 3 + 10)
        assert lab.journal.starts() == {0: 2, 1: 1, 2: 1, 3: 1, 4: 1, 5: 1}
