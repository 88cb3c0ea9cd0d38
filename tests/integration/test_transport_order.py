"""What is given back stands at its old place: requeue, close, retry, delay, shutdown."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from kombu import Connection, Queue

from cqrs_celery.transport import TRANSPORT
from tests.chaos.lab import Lab
from tests.waiting import wait_until


def connect(url: str, **options: Any) -> Connection:
    return Connection(url, transport=TRANSPORT, transport_options={"lease_s": 1, **options})


def line_of(lab_url: str, queue: str = "line") -> list[int]:
    """Return the bodies that stand in a queue, in order, without taking them away for good."""
    with connect(lab_url) as connection, connection.channel() as channel:
        bound = Queue(queue)(channel)
        messages = []
        while (message := bound.get()) is not None:
            messages.append(message)
        return [message.payload for message in messages]


def test_requeued_and_unsettled_messages_return_to_the_head_in_order(redis_url: str) -> None:
    # given a consumer that holds the first five of ten messages
    with connect(redis_url) as connection:
        queue = connection.SimpleQueue("line")
        for n in range(10):
            queue.put(n)
        held = [queue.get(timeout=5) for _ in range(5)]
        # when it has done one, requeues two, youngest last, and closes with two in hand
        held[0].ack()
        held[3].requeue()
        held[1].requeue()
        queue.close()
    # then the rest stands in its old order
    assert line_of(redis_url) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    # and once more, since looking was taking and closing
    assert line_of(redis_url) == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_recover_gives_all_that_is_unsettled_back_in_order(redis_url: str) -> None:
    with connect(redis_url) as connection, connection.channel() as channel:
        queue = Queue("line")(channel)
        queue.declare()
        producer = connection.Producer(channel)
        for n in range(4):
            producer.publish(n, routing_key="line")
        got = [queue.get() for _ in range(3)]
        assert [message.payload for message in got if message] == [0, 1, 2]
        # when the channel recovers
        channel.basic_recover(requeue=True)
        # then they come again, in order
        again = [queue.get() for _ in range(4)]
        assert [message.payload for message in again if message] == [0, 1, 2, 3]


def test_a_task_that_is_requeued_comes_before_what_is_behind_it(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url, max_deliveries=100) as lab:
        # given a task that rejects itself with requeue until it may run, and one behind it
        lab.send(0, "refuse", kwargs={"gate": "gate"})
        lab.send(1)
        lab.worker()
        wait_until(lambda: lab.journal.starts()[0] > 3, 20, "some refusals")
        assert lab.journal.starts()[1] == 0
        # when it may run
        lab.open("gate")
        lab.wait_done(0, 1)
        # then it comes first
        assert lab.journal.order("done") == [0, 1]


def test_a_retry_keeps_its_place_in_its_sequence(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given two workers, and a sequence whose first message is retried twice, later each time
        lab.workers(lab.new_worker(), lab.new_worker(pool="prefork", concurrency=2))
        lab.send(0, "again", sequence="a", kwargs={"times": 2, "countdown": 0.3})
        for n in range(1, 5):
            lab.send(n, sequence="a")
        lab.send(10, sequence="b")
        lab.send(11)
        # then what is behind it waits, and other sequences do not
        lab.wait_done(*range(5), 10, 11)
        assert [n for n in lab.journal.order() if n < 10] == [0, 0, 0, 1, 2, 3, 4]
        done = lab.journal.order("done")
        assert {done.index(10), done.index(11)} == {0, 1}


def test_a_worker_killed_between_a_retry_and_its_acknowledgement_leaves_one_copy(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=1) as lab:
        # given prefork and solo workers whose tasks have published their retries and run on
        workers = [
            lab.new_worker("prefork", pool="prefork", queues=["a"]),
            lab.new_worker("solo", queues=["b"]),
        ]
        lab.workers(*workers)
        for n, queue in enumerate("ab"):
            lab.send(n, "again", queue=queue, sequence="s", kwargs={"gate": "never"})
            lab.send(n + 10, queue=queue, sequence="s")
        wait_until(lambda: sorted(lab.journal.order("retried")) == [0, 1], 20, "both retries")
        # when they are killed
        for worker in workers:
            worker.kill()
        # then each retry runs once, before what is behind it
        lab.worker("after", queues=["a", "b"])
        lab.wait_done(0, 1, 10, 11)
        lines = lab.journal.lines()
        for n in (0, 1):
            starts = [line.retries for line in lines if line.n == n and line.event == "start"]
            assert starts == [0, 1]
            order = lab.journal.order("done")
            assert order.index(n) < order.index(n + 10)


def test_delayed_messages_wait_in_redis_and_come_on_time_in_order_after_a_restart(
    tmp_path: Path, redis_url: str
) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=1) as lab:
        # given messages due in the reverse order of their sending, long after the restart below
        worker = lab.worker()
        due = {n: time.monotonic() + 12 - n * 0.4 for n in range(5)}
        now, now_s = datetime.now(UTC), time.monotonic()
        for n in range(5):
            lab.send(n, eta=now + timedelta(seconds=due[n] - now_s))
        lab.send(10)
        lab.wait_done(10)
        # when the worker is asked what it has, it holds nothing: they wait in Redis
        with lab.app().connection() as connection:
            assert lab_queue(connection).zcard("cq:delayed:work") == 5
            inspect = lab.app().control.inspect(connection=connection, timeout=5, limit=1)
            assert len(inspect.scheduled()[worker.hostname]) == 5
            assert inspect.reserved() == {worker.hostname: []}
        # and when it is killed and another one comes
        worker.kill()
        worker.start()
        # then each comes once, not too early and soon after its time, in the order of those times
        lab.wait_done(*range(5))
        lines = {line.n: line.at for line in lab.journal.lines() if line.event == "start"}
        assert all(lines[n] >= due[n] - 0.01 for n in due)
        assert all(lines[n] <= due[n] + 5 for n in due)
        assert lab.journal.order() == [10, 4, 3, 2, 1, 0]


def lab_queue(connection: Connection) -> Any:
    """Return a redis client of a connection."""
    return connection.default_channel.client
