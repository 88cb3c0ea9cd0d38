"""What goes to everybody by the transport: remote control, events, gossip, broadcast queues."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue

from cqrs_celery.transport import TRANSPORT
from tests.chaos.lab import QUEUE, Lab
from tests.waiting import wait_until


def test_remote_control_reaches_every_worker_of_every_pool(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        # given a worker of each pool
        pools = ("prefork", "solo", "threads", "gevent")
        workers = [lab.new_worker(pool, pool=pool, queues=[pool]) for pool in pools]
        lab.workers(*workers)
        names = sorted(worker.hostname for worker in workers)
        app = lab.app()
        with app.connection() as connection:
            # when all are asked
            inspect = app.control.inspect(connection=connection, timeout=15, limit=len(pools))
            # then all answer
            assert sorted(inspect.ping() or {}) == names
            queues = inspect.active_queues()
            assert {name: queues[name][0]["name"] for name in names} == {
                worker.hostname: worker.worker_queue() for worker in workers
            }
            # and one that is asked alone answers alone, and does as it is told
            one = [workers[2].hostname]
            replies = app.control.add_consumer(
                "new", destination=one, connection=connection, reply=True, timeout=15, limit=1
            )
            assert [list(reply) for reply in replies] == [one]
        lab.send(1, queue="new")
        lab.wait_done(1)
        # and all end at a word
        app.control.shutdown()
        wait_until(lambda: all(worker.status == "exited" for worker in workers), 30, "the end")


def test_a_running_task_is_revoked_and_does_not_come_back(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url, lease_s=1) as lab:
        lab.worker(pool="prefork")
        task_id = lab.send(0, kwargs={"gate": "never"})
        lab.wait_started(0)
        lab.send(1)
        with lab.app().connection() as connection:
            lab.app().control.revoke(task_id, terminate=True, connection=connection)
        lab.wait_done(1)
        lab.wait_empty()
        assert lab.journal.starts() == {0: 1, 1: 1}


def watch_two_workers(lab: Lab, seen: list[dict[str, Any]]) -> None:
    """Start two workers that know of each other, run a task, kill one."""

    def has(kind: str) -> Callable[[], bool]:
        return lambda: any(event["type"] == kind for event in seen)

    one = lab.new_worker("one", arguments=["--task-events"], loglevel="DEBUG")
    two = lab.new_worker("two", arguments=["--task-events"], queues=["other"], loglevel="DEBUG")
    one.start()
    one.wait_ready()
    wait_until(has("worker-heartbeat"), 20, "a heartbeat")
    two.start()
    two.wait_ready()
    # the second finds the first at its start
    assert "mingle: sync with 1 nodes" in two.logs()
    wait_until(lambda: "two@test joined the party" in one.logs(), 20, "the gossip")
    wait_until(lambda: "one@test joined the party" in two.logs(), 20, "the gossip")
    # a task's events arrive
    task_id = lab.send(0)
    wait_until(has("task-succeeded"), 20, "the success")
    kinds = [event["type"] for event in seen if event.get("uuid") == task_id]
    assert kinds == ["task-received", "task-started", "task-succeeded"]
    # and when the first is killed, the second misses it
    one.kill()
    wait_until(lambda: "missed heartbeat from one@test" in two.logs(), 40, "the gossip")


def test_workers_see_one_another_and_their_events_arrive(tmp_path: Path, redis_url: str) -> None:
    with Lab(tmp_path, url=redis_url) as lab:
        app = lab.app()
        seen: list[dict[str, Any]] = []
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": seen.append})
            listener = threading.Thread(target=receiver.capture, args=(None, None, False))
            listener.start()
            try:
                watch_two_workers(lab, seen)
            finally:
                receiver.should_stop = True
                app.control.heartbeat()
                listener.join(20)


def test_a_broadcast_reaches_every_queue_and_lies_in_none(redis_url: str) -> None:
    exchange = Exchange("all", type="fanout")
    got: list[tuple[str, Any]] = []
    with Connection(redis_url, transport=TRANSPORT) as connection:
        consumers = []
        for name in ("a", "b", "c"):
            channel = connection.channel()

            def note(body: Any, message: Any, name: str = name) -> None:
                got.append((name, body))
                message.ack()

            consumers.append(Consumer(channel, [Queue(name, exchange)], callbacks=[note]))
            consumers[-1].consume()
        # a plain queue beside them
        plain = Consumer(
            connection.channel(), [Queue(QUEUE)], no_ack=True,
            callbacks=[lambda body, message: got.append((QUEUE, body))],
        )  # fmt: skip
        plain.consume()
        # the subscription is made at the first turn
        for _ in range(3):
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
        with Connection(redis_url, transport=TRANSPORT) as other:
            producer = other.Producer()
            producer.publish("news", exchange=exchange, routing_key="", declare=[exchange])
            producer.publish("work", routing_key=QUEUE, exchange="")
        while len(got) < 4:
            connection.drain_events(timeout=5)
        assert sorted(got) == [("a", "news"), ("b", "news"), ("c", "news"), (QUEUE, "work")]
        client = connection.default_channel.client
        assert [key for key in client.keys("*") if client.type(key) == b"list"] == []
