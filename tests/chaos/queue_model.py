"""Drive the queue at random beside a model that knows what must come out of it.

The model is independent of the queue's own keys: it knows what was published in which order, who
was handed what, and which settlements counted. Any disagreement is an AssertionError with the seed
and the step.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import redis

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import (
    Destination,
    Settlement,
    Taken,
    ack,
    bury,
    give_back,
    later,
    requeue,
)

QUEUES = ["orders", "stock", "mail"]
SEQUENCES = [f"Item-{n}" for n in range(6)]
LEASE_MS = 600_000
#: What may stay when every message is done: counters, registrations, and ids that expire.
MAY_STAY = ("cq:id", "cq:fence", "cq:consumers", "cq:idle", "cq:dedup:", "cq:consuming:",
            "cq:queues_of:", "cq:prioritised", "cq:steps", "cq:blocking")  # fmt: skip


@dataclass
class Consumer:
    name: str
    holds: dict[int, Taken] = field(default_factory=dict)
    #: Deliveries that ended without this consumer knowing it; acking one must count nothing.
    lost: list[Taken] = field(default_factory=list)


class QueueModel:
    def __init__(self, client: redis.Redis, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.client = client
        self.queue = ReliableQueue(client, prefix="{t}.")
        self.step = 0
        self.published = 0
        self.publish_ids: list[tuple[str, list[Destination], str, int]] = []
        #: (queue, tag) -> how often an acknowledgement counted
        self.settled: Counter[tuple[str, str]] = Counter()
        self.expected: set[tuple[str, str]] = set()
        #: (queue, sequence) -> tags in publish order that are not settled yet
        self.order: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.dead: dict[tuple[str, int], str] = {}
        self.deaths = 0
        self.refusals = 0
        self.consumers = [self._new_consumer() for _ in range(4)]
        self.queue.block_on_dead_letter("orders", is_blocking=True)

    def run(self, steps: int) -> None:
        actions = [
            (self.publish, 30), (self.take, 30), (self.settle, 34), (self.die, 2),
            (self.pause, 2), (self.late_ack, 3), (self.duplicate, 4), (self.renew_late, 1),
            (self.revive, 3),
        ]  # fmt: skip
        kinds, weights = zip(*actions, strict=True)
        for self.step in range(steps):
            self.random.choices(kinds, weights)[0]()
        self.drain()

    def check(self, truth: object, message: str) -> None:
        assert truth, f"seed {self.seed}, step {self.step}: {message}"

    # ------------------------------------------------------------ actions

    def publish(self) -> None:
        self.published += 1
        tag = str(self.published)
        targets = self.random.sample(QUEUES, self.random.choice([1, 1, 1, 2, 3]))
        kind = self.random.choice(["plain", "sequence", "sequence", "sequence"])
        is_delayed = self.random.random() < 0.1
        sequence = self.random.choice(SEQUENCES) if kind == "sequence" else ""
        if sequence and is_delayed:
            sequence = f"delayed-{sequence}"
        priority = self.random.choice([0, 0, 0, 3, 9])
        body = tag if len(targets) > 1 else ""
        head = "" if body else tag
        to = [Destination(queue, head, sequence, priority) for queue in targets]
        publish_id = f"p{tag}"
        delay_ms = self.random.randint(1, 30) if is_delayed else 0
        count = self.queue.publish(to, publish_id=publish_id, body=body, delay_ms=delay_ms)
        self.check(count == len(targets), f"published to {count} queues, not {len(targets)}")
        self.publish_ids.append((publish_id, to, body, delay_ms))
        for queue in targets:
            self.expected.add((queue, tag))
            if sequence and not is_delayed:
                self.order[queue, sequence].append(tag)

    def duplicate(self) -> None:
        if self.publish_ids:
            publish_id, to, body, delay_ms = self.random.choice(self.publish_ids[-50:])
            count = self.queue.publish(to, publish_id=publish_id, body=body, delay_ms=delay_ms)
            self.check(count == 0, f"publish id {publish_id} was stored twice")

    def take(self, consumer: Consumer | None = None) -> int:
        consumer = consumer or self.random.choice(self.consumers)
        settlements = [self._settlement(consumer) for _ in range(self.random.choice([0, 0, 1, 2]))]
        return self._exchange(consumer, [s for s in settlements if s], self.random.randint(1, 8))

    def settle(self) -> None:
        consumer = self.random.choice(self.consumers)
        settlements = [self._settlement(consumer) for _ in range(self.random.randint(1, 5))]
        self._exchange(consumer, [s for s in settlements if s], 0)

    def die(self) -> None:
        """A worker is gone for good; another one recovers its messages."""
        consumer = self.random.choice(self.consumers)
        self._end_lease(consumer)
        self.consumers.remove(consumer)
        self.consumers.append(self._new_consumer())
        self._recover(consumer)

    def pause(self) -> None:
        """A worker is frozen past its lease, recovered by another, and goes on unaware."""
        consumer = self.random.choice(self.consumers)
        self._end_lease(consumer)
        held = self._recover(consumer)
        consumer.lost += held
        self.check(not self.queue.beat(consumer.name, LEASE_MS).is_held, "a recovered lease held")
        self.queue.beat(consumer.name, LEASE_MS, register=True)

    def renew_late(self) -> None:
        """A worker renews its ended lease before anybody recovered it, and keeps everything."""
        consumer = self.random.choice(self.consumers)
        self._end_lease(consumer)
        self.check(self.queue.beat(consumer.name, LEASE_MS).is_held, "a late renewal was refused")
        self.check(self.queue.recover() == [], "a renewed consumer was recovered")

    def late_ack(self) -> None:
        consumer = self.random.choice(self.consumers)
        if consumer.lost:
            taken = consumer.lost.pop(self.random.randrange(len(consumer.lost)))
            how = self.random.choice([ack, requeue, give_back])
            answer = self.queue.settle_and_take(consumer.name, [how(taken.id, taken.fence)])
            self.refusals += 1
            self.check(answer.refused == (taken.id,), "a settlement after the lease counted")

    def revive(self) -> None:
        """Redrive or discard a dead letter."""
        if self.dead:
            (queue, message_id), tag = self.random.choice(list(self.dead.items()))
            del self.dead[queue, message_id]
            if self.random.random() < 0.6:
                self.check(self.queue.redrive(queue, message_id), "a dead letter was missing")
                return
            self.check(self.queue.discard(queue, message_id), "a dead letter was missing")
            self.settled[queue, tag] += 1
            for (of, _), tags in self.order.items():
                if of == queue and tag in tags:
                    tags.remove(tag)

    # ------------------------------------------------------------ helpers

    def _new_consumer(self) -> Consumer:
        self.deaths += 1
        consumer = Consumer(f"worker-{self.deaths}")
        self.queue.beat(consumer.name, LEASE_MS, register=True)
        self.queue.consume(consumer.name, QUEUES)
        return consumer

    def _end_lease(self, consumer: Consumer) -> None:
        self.client.zadd(self.queue.key("consumers"), {consumer.name: 1})

    def _recover(self, consumer: Consumer) -> list[Taken]:
        recovered = self.queue.recover()
        self.check(
            [(r.consumer, r.messages) for r in recovered] == [(consumer.name, len(consumer.holds))],
            f"recovered {recovered}, expected {len(consumer.holds)} from {consumer.name}",
        )
        held, consumer.holds = list(consumer.holds.values()), {}
        return held

    def _tag(self, taken: Taken) -> str:
        return (taken.payload + taken.body).decode()

    def _settlement(self, consumer: Consumer) -> Settlement | None:
        """End one delivery as a worker would: of a sequence, the first that it holds."""
        if not consumer.holds:
            return None
        taken = self.random.choice(list(consumer.holds.values()))
        if taken.sequence:
            taken = next(
                t for t in consumer.holds.values()
                if (t.queue, t.sequence) == (taken.queue, taken.sequence)
            )  # fmt: skip
        del consumer.holds[taken.id]
        tag, place = self._tag(taken), (taken.queue, taken.sequence)
        fate = self.random.random()
        if fate < 0.8:
            self.settled[taken.queue, tag] += 1
            if tag in self.order[place]:
                self.order[place].remove(tag)
            return ack(taken.id, taken.fence)
        if fate < 0.9:
            self._forget_run(consumer, taken)
            back = self.random.choice([requeue, give_back])
            return back(taken.id, taken.fence)
        if fate < 0.95:
            self._forget_run(consumer, taken)
            return later(taken.id, taken.fence, self.random.randint(1, 20))
        if taken.queue == "orders":
            self._forget_run(consumer, taken)
        elif tag in self.order[place]:
            # Letters of this queue let their sequence go on, so they leave the order.
            self.order[place].remove(tag)
        self.dead[taken.queue, taken.id] = tag
        return bury(taken.id, taken.fence, '{"reason": "test"}')

    def _forget_run(self, consumer: Consumer, taken: Taken) -> None:
        """What follows in the sequence is taken back with it; acking that must count nothing."""
        if taken.sequence:
            place = taken.queue, taken.sequence
            behind = [t for t in consumer.holds.values() if (t.queue, t.sequence) == place]
            for one in behind:
                del consumer.holds[one.id]
                consumer.lost.append(one)

    def _exchange(self, consumer: Consumer, settlements: list[Settlement], count: int) -> int:
        queues = self.random.sample(QUEUES, len(QUEUES))
        run = self.random.randint(1, 4)
        answer = self.queue.settle_and_take(
            consumer.name, settlements, queues=queues, count=count, run=run
        )
        self.check(answer.is_known, "a living consumer was unknown")
        self.check(not answer.refused, f"settlements of held messages were refused: {answer}")
        lines = Counter((t.queue, t.sequence or t.id) for t in answer.taken)
        self.check(len(lines) <= count, "more was taken than asked for")
        self.check(all(n <= run for n in lines.values()), "a run is longer than asked for")
        for taken in answer.taken:
            self._receive(consumer, taken)
        return len(answer.taken)

    def _receive(self, consumer: Consumer, taken: Taken) -> None:
        tag, place = self._tag(taken), (taken.queue, taken.sequence)
        self.check((taken.queue, tag) in self.expected, f"an unknown message {taken}")
        self.check(not self.settled[taken.queue, tag], f"{taken} was settled before")
        for other in self.consumers:
            self.check(taken.id not in other.holds, f"{taken} is held by {other.name} already")
            if taken.sequence and other is not consumer:
                held = [t for t in other.holds.values() if (t.queue, t.sequence) == place]
                self.check(not held, f"{place} is held by {other.name} and {consumer.name}")
        if tag in self.order[place]:
            ahead = self.order[place][: self.order[place].index(tag)]
            held_tags = {self._tag(t) for t in consumer.holds.values() if t.queue == taken.queue}
            self.check(set(ahead) <= held_tags, f"{taken} overtook {ahead}")
        consumer.holds[taken.id] = taken

    def drain(self) -> None:
        """Let the work end: revive all letters, take and ack until nothing is left."""
        for consumer in list(self.consumers[1:]):
            self._end_lease(consumer)
            self._recover(consumer)
            self.consumers.remove(consumer)
        for queue, message_id in list(self.dead):
            self.check(self.queue.redrive(queue, message_id), "a dead letter was missing")
        self.dead.clear()
        consumer = self.consumers[0]
        while len(self.settled) < len(self.expected) or consumer.holds:
            self.step += 1
            settlements = []
            for taken in list(consumer.holds.values()):
                settlements.append(ack(taken.id, taken.fence))
                self.settled[taken.queue, self._tag(taken)] += 1
                if self._tag(taken) in self.order[taken.queue, taken.sequence]:
                    self.order[taken.queue, taken.sequence].remove(self._tag(taken))
            consumer.holds.clear()
            if not self._exchange(consumer, settlements, 100) and not settlements:
                answer = self.queue.settle_and_take(consumer.name, queues=QUEUES, count=1)
                self.check(
                    answer.taken or answer.due_in_ms is not None,
                    f"lost: {sorted(self.expected - set(self.settled))[:10]}",
                )
                for taken in answer.taken:
                    self._receive(consumer, taken)
        self.check(set(self.settled.values()) <= {1}, "a message was settled twice")
        self.check(set(self.settled) == self.expected, "settled is not what was published")
        left = [
            name for name in (key.decode() for key in self.client.scan_iter(count=1000))
            if not name.removeprefix("{t}.").startswith(MAY_STAY)
        ]  # fmt: skip
        self.check(not left, f"keys left over: {left}")
