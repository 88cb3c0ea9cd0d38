"""Stop, kill, and kill again: workers around a take, publishers around a publish."""

from __future__ import annotations

import itertools
import json
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from celery import Celery
from kombu import Exchange, Queue

from cqrs_celery.queue.values import Settlement, ack
from cqrs_celery.transport.envelope import decode
from tests.chaos.lab import ALONE, Lab
from tests.chaos.nursery import Child, Nursery

#: Workers that are killed at a time.
AT_A_TIME = 4

#: Seconds of a lease: what a killed worker held comes back while the next rounds run.
LEASE_S = 1.0

#: Seconds after a publish in which a worker takes, runs and settles.
LONGEST_S = 0.008

KILL_ROWS = (
    "rounds", "messages", "frozen before the publish", "killed with messages in hand",
    "messages in hand", "started again", "lost",
)  # fmt: skip

PUBLISH_ROWS = ("rounds", "messages", "on some of their queues only")

TOPIC_QUEUES = ("news-1", "news-2", "news-3")


def kill_around_takes(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Freeze a worker that waits for work, publish, kill it; so many times, at random moments.

    A round kills one worker. At the end all messages must have been done, and none may have been
    started again that was not in the hands of a killed worker.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a message was lost or left, or started without need.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    queues = [f"victim-{i}" for i in range(AT_A_TIME)]
    with Lab(folder, lease_s=LEASE_S, max_deliveries=1_000) as lab, Nursery(folder) as nursery:
        keeper = start_worker(nursery, lab, "keeper", "nothing")
        started_at = time.monotonic()
        for first in range(0, rounds, AT_A_TIME):
            using = queues[: rounds - first]
            victims = [start_worker(nursery, lab, queue, queue) for queue in using]
            for victim in victims:
                victim.wait_said("ready.")
            for victim, queue in zip(victims, using, strict=True):
                is_frozen_first = chance.random() < 0.3
                if is_frozen_first:
                    victim.send(signal.SIGSTOP)
                for _ in range(chance.randrange(1, 4)):
                    lab.send(seen["messages"], queue=queue)
                    seen["messages"] += 1
                if not is_frozen_first:
                    spin(chance.uniform(0, LONGEST_S))
                    victim.send(signal.SIGSTOP)
                seen["frozen before the publish"] += is_frozen_first
            for victim in victims:
                held = held_by(lab, victim)
                seen["killed with messages in hand"] += held > 0
                seen["messages in hand"] += held
                victim.kill()
                seen["rounds"] += 1
        last = start_worker(nursery, lab, "last", ",".join(queues))
        lab.wait_done(*range(seen["messages"]), deadline_s=60 + rounds / 10)
        lab.wait_empty()
        for worker in (keeper, last):
            worker.kill()
        seen["started again"] = lab.journal.starts().total() - seen["messages"]
        seen["lost"] = seen["messages"] - len(lab.journal.done())
        seconds = round(time.monotonic() - started_at)
    assert seen["started again"] <= seen["messages in hand"], f"started without need: {seen}"
    return {name: seen[name] for name in KILL_ROWS} | {"seconds": seconds}


def start_worker(nursery: Nursery, lab: Lab, name: str, queues: str) -> Child:
    """Fork a solo worker."""
    env = {"LAB_FOLDER": str(lab.folder), "LAB_CONF": json.dumps(lab.settings())}
    argv = ["--pool", "solo", "--queues", queues, "--hostname", f"{name}@test", *ALONE]
    function = "tests.chaos.nursery:run_worker"
    return nursery.start(function, "lab_app", *argv, "--loglevel", "INFO", env=env)


def held_by(lab: Lab, worker: Child) -> int:
    """Return how many messages a worker holds, as the server sees it."""
    consumers = lab.client.zrange("cq:consumers", 0, -1)
    names = [bytes(name).decode() for name in consumers]  # type: ignore[arg-type]
    mine = [name for name in names if f":{worker.pid}:" in name]
    return sum(lab.client.hlen(f"cq:flight:{name}") for name in mine)


def spin(seconds: float) -> None:
    """Wait shorter than a sleep can."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def kill_publishers(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Kill a publisher in the middle of publishing to three queues at once, so many times.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a message is on some of its queues, but not on all.
    """
    chance = random.Random(seed)
    seen: Counter[str] = Counter()
    with Lab(folder) as lab, Nursery(folder) as nursery:
        started_at = time.monotonic()
        for number in range(rounds):
            publisher = nursery.start(
                "tests.chaos.killing:publish_for_ever", lab.settings(), number
            )
            publisher.wait_said("publishing")
            spin(chance.uniform(0, 0.03))
            publisher.kill()
            seen["rounds"] += 1
        found = {name: drain(lab, name) for name in TOPIC_QUEUES}
        everywhere, anywhere = set.intersection(*found.values()), set.union(*found.values())
        seen["messages"] = len(anywhere)
        seen["on some of their queues only"] = len(anywhere - everywhere)
        left = [key for key in ("cq:msg", "cq:body", "cq:refs") if lab.client.exists(key)]
        seconds = round(time.monotonic() - started_at)
    assert anywhere == everywhere, f"some are not everywhere: {anywhere - everywhere}"
    assert not left, f"something is left of what was done: {left}"
    return {name: seen[name] for name in PUBLISH_ROWS} | {"seconds": seconds}


def drain(lab: Lab, name: str) -> set[str]:
    """Take all messages of a queue, settle them, and return what they are called; each once."""
    found: list[str] = []
    lab.queue.beat("reader", 600_000, register=True)
    done: list[Settlement] = []
    while True:
        taken = lab.queue.settle_and_take("reader", done, queues=[name], count=500).taken
        if not taken:
            break
        found += [decode(one, "", "reader")["headers"]["n"] for one in taken]
        done = [ack(one.id, one.fence) for one in taken]
    lab.queue.leave("reader")
    assert len(found) == len(set(found)), f"{name} has a message twice"
    return set(found)


def publish_for_ever(settings: dict[str, Any], number: int) -> None:
    """Publish to a topic that three queues are bound to, until killed."""
    app = Celery("publisher", set_as_current=False)
    app.conf.update(settings)
    exchange = Exchange("news", type="topic")
    with app.connection() as connection:
        channel = connection.channel()
        for queue in TOPIC_QUEUES:
            Queue(queue, exchange, routing_key="item.#")(channel).declare()
        producer = connection.Producer(channel)
        for n in itertools.count():
            if n == 1:
                sys.stdout.write("publishing\n")
                sys.stdout.flush()
            producer.publish(
                "body" * 50, exchange=exchange, routing_key="item.added",
                headers={"n": f"{number}-{n}"},
            )  # fmt: skip
