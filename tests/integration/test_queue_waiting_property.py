"""Whatever happens, no consumer waits in vain while something is ready that is its own."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from cqrs_celery.queue import polling
from cqrs_celery.queue.polling import IdlePoll
from cqrs_celery.queue.values import Taken, ack, give_back
from tests.queues import LEASE_MS, QueueCase, Worker, opened

QUEUES = [f"queue-{n}" for n in range(6)]

STEPS = 600

#: Ends of the names of the lists of those priorities that are used.
STEP_ENDS = ("", "\x06\x164")


@pytest.fixture
def queue(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[QueueCase]:
    """Give a queue whose consumers all have more queues than are looked at in one poll."""
    monkeypatch.setattr(polling, "MOST_QUEUES", 0)
    with opened(redis_url) as case:
        yield case


class Waiting:
    """Consumers that come, take, wait and die at random; some of them hear no wake-up."""

    def __init__(self, queue: QueueCase, seed: int) -> None:
        self.queue = queue
        self.random = random.Random(seed)
        self.workers: dict[str, Worker] = {}
        self.waits: set[str] = set()
        self.held: dict[str, list[Taken]] = {}
        self._number = 0
        #: by whom alone a wake-up is heard; they come when they please
        self._pubsub = queue.client.pubsub()
        self._pubsub.psubscribe("*wake:deaf-*")
        assert self._pubsub.get_message(timeout=5)

    def run(self) -> None:
        """Do a thing at random, then check, again and again."""
        kinds = [self.start, self.publish, self.take, self.settle, self.end, self.consume, self.due]
        weights = [2, 10, 14, 6, 1.5, 1, 2]
        for _ in range(STEPS):
            self.random.choices(kinds, weights)[0]()
            self.check()
        self._pubsub.close()

    def start(self) -> None:
        self._number += 1
        name = f"{self.random.choice(['deaf', 'dead'])}-{self._number}"
        self.workers[name] = self.queue.worker(name, *self._some_queues())
        self.held[name] = []

    def _some_queues(self) -> list[str]:
        return self.random.sample(QUEUES, self.random.randint(1, len(QUEUES)))

    def publish(self) -> None:
        self._number += 1
        self.queue.send(
            *map(str, range(self.random.randint(1, 3))),
            to=self.random.choice(QUEUES),
            sequence=self.random.choice(["", "", f"Item-{self._number % 3}"]),
            delay_ms=self.random.choice([0, 0, 0, 60_000]),
            priority=self.random.choice([0, 0, 4]),
        )

    def take(self) -> None:
        if not self.workers:
            return
        name = self.random.choice(list(self.workers))
        worker = self.workers[name]
        answer = worker.exchange(count=self.random.randint(1, 4), was_idle=name in self.waits)
        self.held[name] += answer.taken
        # Like a channel, which asks again at once for what is due.
        if answer.taken or answer.due_in_ms == 0:
            self.waits.discard(name)
        else:
            self.waits.add(name)

    def settle(self) -> None:
        for name, held in self.held.items():
            if held and self.random.random() < 0.5:
                how = self.random.choice([ack, ack, give_back])
                self.workers[name].end(how, held)
                held.clear()

    def end(self) -> None:
        if not self.workers:
            return
        name = self.random.choice(list(self.workers))
        if self.random.random() < 0.5:
            self.queue.leave(name)
        else:
            self.queue.end_lease(name)
            self.queue.recover()
        self.waits.discard(name)
        del self.workers[name], self.held[name]

    def consume(self) -> None:
        if not self.workers:
            return
        name = self.random.choice(list(self.workers))
        self.workers[name].queues = queues = self._some_queues()
        self.queue.consume(name, queues)
        self.queue.beat(name, LEASE_MS)
        # Like a channel, which asks as soon as it consumes another queue.
        self.waits.discard(name)

    def due(self) -> None:
        self.queue.make_due()

    def check(self) -> None:
        """Check that who waits is known to, and that its poll finds what is ready."""
        idle = {name.decode() for name in self.queue.redis.smembers(self.queue.key("idle"))}
        assert idle <= self.workers.keys()
        ready = {
            name
            for name in QUEUES
            if self.queue.redis.exists(*(f"{self.queue.prefix}{name}{end}" for end in STEP_ENDS))
        }
        for name, worker in self.workers.items():
            if name in idle:
                for one in worker.queues:
                    key = self.queue.key(f"idle:{one}")
                    assert self.queue.redis.sismember(key, name), (name, one)
            if name in self.waits and ready & set(worker.queues):
                assert IdlePoll(self.queue, name).may_take(worker.queues), (name, ready)


@pytest.mark.parametrize("seed", range(3))
def test_no_consumer_waits_in_vain(queue: QueueCase, seed: int) -> None:
    Waiting(queue, seed).run()
