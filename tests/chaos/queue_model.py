"""Drive the queue at random beside a model that knows what must come out of it.

The model is independent of the queue's own keys: it knows what was published in which order, who
was handed what, how often, and which settlements counted. Only `audit` looks into the keys, for
what no answer shows: that each message is in exactly one place. Delays are long, and end when
the model lets time pass, so that a seed repeats a run exactly. Any disagreement is an
AssertionError with the seed and the step.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import (
    Destination,
    LetterPolicy,
    Recovered,
    Settlement,
    Taken,
    ack,
    bury,
    give_back,
    later,
    requeue,
)
from tests.queues import LEASE_MS, PREFIX, counts_by_scan, counts_kept, leftovers, make_due

QUEUES = ["orders", "stock", "mail"]
#: Its dead letters block their sequence.
BLOCKING = "orders"
SEQUENCES = [f"Item-{n}" for n in range(6)]
PRIORITIES = [0, 0, 0, 3, 9]
#: topic -> queues of its subscribers
TOPICS = {"placed": ["orders", "stock", "mail"], "paid": ["mail"], "ignored": []}
#: Deliveries without a settlement after which a message is a dead letter.
MOST_TRIES = 3
AUDIT_EVERY_STEPS = 500
#: How many messages consumers run at once.
SLOTS = (0, 1, 2, 4)
#: Longer than any run; `pass_time` ends it.
DELAY_MS = 3_600_000

#: A message to one queue: the queue and what the message says.
Copy = tuple[str, str]


@dataclass
class Consumer:
    name: str
    #: How many it is said to run at once; 0 for not known.
    slots: int = 0
    holds: dict[int, Taken] = field(default_factory=dict)
    #: Deliveries that ended without this consumer knowing it; acking one must count nothing.
    lost: list[Taken] = field(default_factory=list)


class QueueModel:
    def __init__(self, client: Any, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.client = client
        self.queue = ReliableQueue(client, prefix=PREFIX)
        self.step = 0
        #: What the table of a run shows.
        self.seen: Counter[str] = Counter()
        self.repeats: list[Callable[[], Any]] = []
        self.expected: set[Copy] = set()
        #: Neither held nor dead nor done.
        self.waiting: set[Copy] = set()
        #: Of those, what may not come before time passes.
        self.not_due: set[Copy] = set()
        self.settled: Counter[Copy] = Counter()
        self.purged: set[Copy] = set()
        #: (queue, sequence) -> what is not done, as it must come
        self.order: dict[tuple[str, str], list[str]] = defaultdict(list)
        self.dead: dict[tuple[str, int], Taken] = {}
        #: message id -> deliveries without a settlement
        self.tries: Counter[int] = Counter()
        #: The heads of messages that came by a topic.
        self.heads: dict[Copy, str] = {}
        self.names = 0
        self.consumers = [self._new_consumer() for _ in range(4)]
        self.queue.letters.set_policy(BLOCKING, LetterPolicy())
        for queue in QUEUES:
            topics = [topic for topic, queues in TOPICS.items() if queue in queues]
            self.queue.subscribe(f"{queue}.handle", topics, queue=queue, priority=3, pieces="<|||>")

    def run(self, steps: int) -> None:
        """Take random steps, then let all work end, and check that nothing is left of it."""
        actions = [
            (self.publish, 26), (self.publish_topic, 4), (self.push_raw, 2), (self.take, 30),
            (self.settle, 34), (self.die, 2), (self.leave, 1), (self.pause, 2), (self.late_ack, 3),
            (self.duplicate, 4), (self.renew_late, 1), (self.revive, 3), (self.purge, 0.2),
            (self.pass_time, 4), (self.recount, 3), (self.count, 2),
        ]  # fmt: skip
        kinds, weights = zip(*actions, strict=True)
        # Redis scans a small hash in one go, so no count would ever be under way.
        [(setting, before)] = self.client.config_get("hash-max-ziplist-entries").items()
        self.client.config_set(setting, 0)
        try:
            for self.step in range(steps):
                self.random.choices(kinds, weights)[0]()
                if self.step % AUDIT_EVERY_STEPS == 0:
                    self.audit()
        finally:
            self.client.config_set(setting, before)
        self.seen["steps"] += steps
        self.drain()

    def check(self, truth: object, message: str) -> None:
        assert truth, f"seed {self.seed}, step {self.step}: {message}"

    # ------------------------------------------------------------ actions

    def publish(self) -> None:
        tag = self._new_tag()
        targets = self.random.sample(QUEUES, self.random.choice([1, 1, 1, 2, 3]))
        sequence = self._some_sequence()
        delay_ms = DELAY_MS if self.random.random() < 0.1 else 0
        if sequence and delay_ms:
            sequence = f"delayed-{sequence}"
        body = tag if len(targets) > 1 else ""
        head = "" if body else tag
        priority = self.random.choice(PRIORITIES)
        to = [Destination(queue, head, sequence, priority) for queue in targets]

        def send() -> int:
            return self.queue.publish(to, publish_id=f"p{tag}", body=body, delay_ms=delay_ms)

        count = send()
        self.check(count == len(targets), f"published to {count} queues, not {len(targets)}")
        self.repeats.append(send)
        self._expect(tag, targets, "" if delay_ms else sequence)
        if delay_ms:
            self.not_due |= {(queue, tag) for queue in targets}

    def publish_topic(self) -> None:
        topic, targets = self.random.choice(list(TOPICS.items()))
        tag, sequence = self._new_tag(), self._some_sequence()

        def send() -> Any:
            return self.queue.publish_topic(
                topic, tag, message_id=tag, root_id=f"r{tag}", parent_id=f"p{tag}",
                sequence=sequence, publish_id=f"p{tag}",
            )  # fmt: skip

        count = send()
        self.check(count == len(targets), f"{topic} went to {count} queues, not {len(targets)}")
        self.repeats.append(send)
        for queue in targets:
            self.heads[queue, tag] = f"<{tag}|{tag}|r{tag}|p{tag}>"
        self._expect(tag, targets, sequence)

    def push_raw(self) -> None:
        """Publish as a stock producer does, past the queue's scripts."""
        tag, queue = f'{{"raw": {self._new_tag()}}}', self.random.choice(QUEUES)
        self.client.lpush(PREFIX + queue, tag)
        self._expect(tag, [queue], "")

    def duplicate(self) -> None:
        if self.repeats:
            self.check(not self.random.choice(self.repeats[-50:])(), "a publish was stored twice")
            self.seen["duplicates refused"] += 1

    def take(self) -> None:
        consumer = self.random.choice(self.consumers)
        self._exchange(consumer, self._settlements(consumer, 2), self.random.randint(1, 8))

    def settle(self) -> None:
        consumer = self.random.choice(self.consumers)
        self._exchange(consumer, self._settlements(consumer, 6), 0)

    def die(self) -> None:
        """A worker is gone for good; another one recovers its messages."""
        consumer = self._replace()
        self.client.zadd(self.queue.key("consumers"), {consumer.name: 1})
        self._recover(consumer)
        self.seen["consumers died"] += 1

    def leave(self) -> None:
        """A worker ends in order: what it holds counts no delivery."""
        consumer = self._replace()
        held = self._return_all(consumer)
        self.check(
            self.queue.leave(consumer.name) == [Recovered(consumer.name, len(held), 0)],
            f"{consumer.name} left and did not return {held}",
        )
        self.seen["consumers left"] += 1

    def pause(self) -> None:
        """A worker is frozen past its lease, recovered by another, and goes on unaware."""
        consumer = self.random.choice(self.consumers)
        self.client.zadd(self.queue.key("consumers"), {consumer.name: 1})
        consumer.lost += self._recover(consumer)
        self.check(not self.queue.beat(consumer.name, LEASE_MS).is_held, "a recovered lease held")
        answer = self.queue.settle_and_take(consumer.name, queues=QUEUES, count=1)
        self.check(not answer.is_known and not answer.taken, "it took without a lease")
        self.queue.beat(consumer.name, LEASE_MS, register=True)
        self._say_what_it_is(consumer)
        self.seen["consumers frozen past their lease"] += 1

    def renew_late(self) -> None:
        """A worker renews its ended lease before anybody recovered it, and keeps everything."""
        consumer = self.random.choice(self.consumers)
        self.client.zadd(self.queue.key("consumers"), {consumer.name: 1})
        self.check(self.queue.beat(consumer.name, LEASE_MS).is_held, "a late renewal was refused")
        self.check(self.queue.recover() == [], "a renewed consumer was recovered")

    def late_ack(self) -> None:
        consumer = self.random.choice(self.consumers)
        if consumer.lost:
            taken = consumer.lost.pop(self.random.randrange(len(consumer.lost)))
            how = self.random.choice([ack, requeue, give_back])
            answer = self.queue.settle_and_take(consumer.name, [how(taken.id, taken.fence)])
            self.check(answer.refused == (taken.id,), "a settlement after the lease counted")
            self.seen["late settlements refused"] += 1

    def revive(self) -> None:
        """Redrive or discard a dead letter."""
        if self.dead:
            (queue, message_id), taken = self.random.choice(list(self.dead.items()))
            if self.random.random() < 0.6:
                self._redrive(queue, message_id)
                return
            del self.dead[queue, message_id]
            self.check(
                self.queue.letters.discard(queue, message_id) == "done", "a dead letter was missing"
            )
            self._done(taken)

    def pass_time(self) -> None:
        """Everything that is delayed is due now."""
        self.seen["delayed"] += len(self.not_due & self.waiting)
        self.not_due.clear()
        make_due(self.queue, is_by_name=True)

    def recount(self) -> None:
        """Go on with a count of a queue's sequences, two of them at a time."""
        off = self.queue.upkeep.recount(self.random.choice(QUEUES), most=2)
        self.check(not off, f"the counts were off by {off}")
        self.seen["counted anew" if off is not None else "counts under way"] += 1

    def count(self) -> None:
        """Count a queue's messages, without going through its sequences."""
        queue = self.random.choice(QUEUES)
        count = self.queue.count(queue)
        held = sum(
            bool(taken.sequence) and taken.queue == queue
            for consumer in self.consumers
            for taken in consumer.holds.values()
        )
        waiting = sum(copy[0] == queue for copy in self.waiting)
        states = self._hash(f"seqs:{queue}").values()
        # A ready sequence's token stands for its first message; a letter heads a blocked one.
        tokens = sum(state[0] == "r" for state in states)
        blocked = sum(state[0] == "d" for state in states)
        found = sum(count) - count.dead - tokens - blocked - held
        self.check(found == waiting, f"{count} of {queue}, expected {waiting} waiting")
        self.check_counts(queue)

    def check_counts(self, queue: str) -> None:
        """Check that the counts that are kept are what the sequences have."""
        kept, found = counts_kept(self.queue, queue), counts_by_scan(self.queue, queue)
        self.check(kept == found, f"counts of {queue}: {kept}, and its sequences have {found}")

    def purge(self) -> None:
        queue = self.random.choice(QUEUES)
        gone = {copy for copy in self.waiting if copy[0] == queue}
        count = self.queue.purge(queue)
        self.check(count == len(gone), f"purged {count} of {queue}, expected {len(gone)}")
        self.waiting -= gone
        self.purged |= gone
        for (of, sequence), tags in self.order.items():
            if of == queue:
                self.order[of, sequence] = [tag for tag in tags if (of, tag) not in gone]
        self.seen["purged"] += count

    # ------------------------------------------------------------ what is expected

    def _new_tag(self) -> str:
        self.seen["publishes"] += 1
        return str(self.seen["publishes"])

    def _some_sequence(self) -> str:
        return self.random.choice(SEQUENCES) if self.random.random() < 0.75 else ""

    def _expect(self, tag: str, queues: list[str], sequence: str) -> None:
        for queue in queues:
            self.expected.add((queue, tag))
            self.waiting.add((queue, tag))
            if sequence:
                self.order[queue, sequence].append(tag)

    def _copy(self, taken: Taken) -> Copy:
        return taken.queue, (taken.body or taken.payload).decode()

    def _done(self, taken: Taken) -> None:
        self.settled[self._copy(taken)] += 1
        self._leave_order(taken)

    def _leave_order(self, taken: Taken) -> None:
        tags = self.order[taken.queue, taken.sequence]
        if self._copy(taken)[1] in tags:
            tags.remove(self._copy(taken)[1])

    def _bury(self, taken: Taken) -> None:
        self.dead[taken.queue, taken.id] = taken
        if taken.queue != BLOCKING:
            self._leave_order(taken)

    def _redrive(self, queue: str, message_id: int) -> None:
        """A letter returns: to the head of what it blocks, else to the end of its sequence."""
        taken = self.dead.pop((queue, message_id))
        self.check(
            self.queue.letters.redrive(queue, message_id) == "done", "a dead letter was missing"
        )
        self.waiting.add(self._copy(taken))
        del self.tries[message_id]
        if taken.sequence and queue != BLOCKING and not taken.sequence.startswith("delayed-"):
            self.order[queue, taken.sequence].append(self._copy(taken)[1])

    # ------------------------------------------------------------ consumers

    def _new_consumer(self) -> Consumer:
        self.names += 1
        consumer = Consumer(f"worker-{self.names}", slots=self.random.choice(SLOTS))
        self.queue.beat(consumer.name, LEASE_MS, register=True)
        self._say_what_it_is(consumer)
        return consumer

    def _say_what_it_is(self, consumer: Consumer) -> None:
        self.queue.consume(consumer.name, QUEUES, about={"slots": consumer.slots})

    def _replace(self) -> Consumer:
        consumer = self.random.choice(self.consumers)
        self.consumers.remove(consumer)
        self.consumers.append(self._new_consumer())
        return consumer

    def _return_all(self, consumer: Consumer) -> list[Taken]:
        held, consumer.holds = list(consumer.holds.values()), {}
        self.waiting |= {self._copy(taken) for taken in held}
        return held

    def _recover(self, consumer: Consumer) -> list[Taken]:
        """Expect each that may have been running to count a delivery; the worn-out ones to die."""
        held, letters = self._return_all(consumer), 0
        most_tries = self.random.choice([0, MOST_TRIES])
        firsts: dict[tuple[str, str | int], Taken] = {}
        for taken in held:
            firsts.setdefault((taken.queue, taken.sequence or taken.id), taken)
        by_age = sorted(firsts.values(), key=lambda taken: taken.fence)
        for taken in firsts.values():
            # An odd fence was taken behind another one of its sequence, to be delivered later.
            is_sure = taken.fence % 2 == 0 and by_age.index(taken) < consumer.slots
            if not consumer.slots or len(firsts) <= consumer.slots or is_sure:
                self.seen["charged"] += 1
                self.tries[taken.id] += 1
                if most_tries and self.tries[taken.id] >= most_tries:
                    letters += 1
                    self.waiting.remove(self._copy(taken))
                    self._bury(taken)
        recovered = self.queue.recover(most_tries=most_tries)
        self.check(
            recovered == [Recovered(consumer.name, len(held), letters)],
            f"recovered {recovered}, expected {len(held)} and {letters} dead from {consumer.name}",
        )
        self.seen["worn out"] += letters
        return held

    def _settlements(self, consumer: Consumer, most: int) -> list[Settlement]:
        """Settle some of what is held, whatever stands ahead of it, in any order.

        Among that may be an earlier delivery of what is held.
        """
        held = list(consumer.holds.values())
        some = self.random.sample(held, min(len(held), self.random.randint(0, most)))
        if self.random.random() < 0.7:
            some.sort(key=lambda taken: list(consumer.holds).index(taken.id))
        settlements = [self._settlement(taken) for taken in some]
        stale = [taken for taken in consumer.lost if taken.id in consumer.holds]
        if stale and self.random.random() < 0.5:
            place = self.random.randint(0, len(settlements))
            settlements.insert(place, self._settlement(self.random.choice(stale)))
            self.seen["late settlements refused"] += 1
        return settlements

    def _settlement(self, taken: Taken) -> Settlement:
        fate = self.random.random()
        if fate < 0.8:
            return ack(taken.id, taken.fence)
        if fate < 0.85:
            return requeue(taken.id, taken.fence)
        if fate < 0.9:
            return give_back(taken.id, taken.fence)
        if fate < 0.95:
            payload = self.random.choice(["", self._copy(taken)[1]])
            return later(taken.id, taken.fence, DELAY_MS, payload)
        return bury(taken.id, taken.fence, '{"reason": "test"}')

    def _predict(
        self, consumer: Consumer, settlements: list[Settlement]
    ) -> tuple[list[int], list[int]]:
        """Do to the model what the queue must do; returns what is refused and what is revoked."""
        refused: list[int] = []
        revoked: list[int] = []
        returned: dict[tuple[str, str], tuple[str, Taken]] = {}
        for settlement in settlements:
            taken = consumer.holds.get(settlement.id)
            if taken is None or taken.fence != settlement.fence:
                refused.append(settlement.id)
                continue
            place, is_burial = (taken.queue, taken.sequence), settlement.operation == "d"
            blocks = taken.sequence and taken.queue == BLOCKING
            behind = self._held_behind(consumer, taken)
            del consumer.holds[taken.id]
            if settlement.operation == "a":
                self._done(taken)
                continue
            if is_burial and not blocks:
                self._bury(taken)
                continue
            consumer.lost.append(taken)
            if settlement.operation == "r":
                self.tries[taken.id] += 1
            if settlement.text and not is_burial:
                self.heads.pop(self._copy(taken), None)
            self.waiting.add(self._copy(taken))
            if settlement.operation == "l" and not taken.sequence:
                self.not_due.add(self._copy(taken))
            if taken.sequence:
                returned[place] = (settlement.operation, taken)
                for one in behind:
                    del consumer.holds[one.id]
                    consumer.lost.append(one)
                    revoked.append(one.id)
                    self.waiting.add(self._copy(one))
        for place, (operation, taken) in returned.items():
            if self._held_of(consumer, place):
                continue
            if operation == "d":
                self.waiting.remove(self._copy(taken))
                self._bury(taken)
            elif operation == "l":
                self.not_due.add(self._copy(taken))
        return refused, revoked

    def _held_of(self, consumer: Consumer, place: tuple[str, str]) -> list[Taken]:
        return [t for t in consumer.holds.values() if (t.queue, t.sequence) == place]

    def _held_behind(self, consumer: Consumer, taken: Taken) -> list[Taken]:
        held = self._held_of(consumer, (taken.queue, taken.sequence))
        return held[held.index(taken) + 1 :]

    def _exchange(self, consumer: Consumer, settlements: list[Settlement], count: int) -> int:
        refused, revoked = self._predict(consumer, settlements)
        queues = self.random.sample(QUEUES, len(QUEUES))
        run = self.random.randint(1, 4)
        answer = self.queue.settle_and_take(
            consumer.name, settlements, queues=queues, count=count, run=run
        )
        self.check(answer.is_known, "a living consumer was unknown")
        self.check(list(answer.refused) == refused, f"refused {answer.refused}, not {refused}")
        self.check(
            sorted(answer.revoked) == sorted(revoked), f"revoked {answer.revoked}, not {revoked}"
        )
        lines = Counter((t.queue, t.sequence or t.id) for t in answer.taken)
        self.check(len(lines) <= count, "more was taken than asked for")
        self.check(all(n <= run for n in lines.values()), "a run is longer than asked for")
        for taken in answer.taken:
            self._receive(consumer, taken)
        return len(answer.taken)

    def _receive(self, consumer: Consumer, taken: Taken) -> None:
        copy, place = self._copy(taken), (taken.queue, taken.sequence)
        self.check(copy in self.waiting, f"{taken} is unknown, held, dead or done")
        self.check(copy not in self.not_due, f"{taken} came before its time")
        self.waiting.remove(copy)
        head = taken.payload.decode() if taken.body else ""
        self.check(head == self.heads.get(copy, ""), f"{taken} has a wrong head")
        self.check(taken.tries == self.tries[taken.id], f"not {self.tries[taken.id]} tries {taken}")
        if taken.sequence:
            for other in self.consumers:
                self.check(
                    other is consumer or not self._held_of(other, place),
                    f"{place} is held by {other.name} and {consumer.name}",
                )
        if copy[1] in self.order[place]:
            ahead = self.order[place][: self.order[place].index(copy[1])]
            held = {self._copy(one)[1] for one in self._held_of(consumer, place)}
            if not set(ahead) <= held:
                self.seen["out of order"] += 1
            self.check(set(ahead) <= held, f"{taken} overtook {ahead}")
        consumer.holds[taken.id] = taken
        self.seen["deliveries"] += 1

    # ------------------------------------------------------------ the end

    def drain(self) -> None:
        """Let the work end: revive all letters, take and ack until nothing is left."""
        while len(self.consumers) > 1:
            consumer = self.consumers.pop()
            self._return_all(consumer)
            self.queue.leave(consumer.name)
        for queue, message_id in list(self.dead):
            self._redrive(queue, message_id)
        consumer = self.consumers[0]
        while self.waiting or consumer.holds:
            self.step += 1
            done = [ack(taken.id, taken.fence) for taken in consumer.holds.values()]
            if not self._exchange(consumer, done, 100) and not done:
                is_over = not self.client.exists(self.queue.key("due"))
                self.check(not is_over, f"lost: {sorted(self.waiting)[:10]}")
                self.pass_time()
        self.seen["lost"] += len(self.expected - set(self.settled) - self.purged)
        self.seen["doubled"] += sum(n > 1 for n in self.settled.values())
        self.seen["doubled"] += len(self.purged & set(self.settled))
        self.check(not self.seen["doubled"], "a message was settled twice")
        self.check(not self.seen["lost"], "a message was lost")
        for queue in QUEUES:
            while (off := self.queue.upkeep.recount(queue)) is None:
                pass
            self.check(not off, f"the counts of {queue} were off by {off}")
        left = leftovers(self.client)
        self.seen["keys left"] += len(left)
        self.check(not left, f"keys left over: {left}")

    def audit(self) -> None:
        """Check that each message is in exactly one place, each token in one list or in none."""
        places: Counter[str] = Counter()
        held = {str(i) for consumer in self.consumers for i in consumer.holds}
        raw = 0
        for queue in QUEUES:
            tokens: Counter[str] = Counter()
            for key in (PREFIX + queue, *(f"{PREFIX}{queue}\x06\x16{step}" for step in (3, 6, 9))):
                for element in self._list(key):
                    if element.startswith("="):
                        tokens[element[1:]] += 1
                    elif element.isdigit():
                        places[element] += 1
                    else:
                        raw += 1
            self.check_counts(queue)
            states = self._hash(f"seqs:{queue}")
            for member in self.client.zrange(self.queue.key(f"delayed:{queue}"), 0, -1):
                _, message_id, sequence = member.decode().split("|", 2)
                if message_id:
                    places[message_id] += 1
                else:
                    self.check(states.get(sequence, "").startswith("l"), f"{member!r} is stray")
            ready = {sequence for sequence, state in states.items() if state.startswith("r")}
            self.check(dict(tokens) == dict.fromkeys(ready, 1), f"tokens {tokens}, ready {ready}")
            for sequence in states:
                ids = self._list(self.queue.key(f"seq:{queue}\x1f{sequence}"))
                self.check(ids, f"{queue}/{sequence} is {states[sequence]} and empty")
                places.update(ids)
            for letter, text in self._hash(f"dead:{queue}").items():
                if text.split("\x1f")[5] == "t":
                    continue
                # The letter that blocks a sequence stays at its head.
                places[letter] = max(places[letter], 1)
        places.update(held - set(places))
        self.check(set(places.values()) <= {1}, f"in two places: {places.most_common(3)}")
        known = set(self._hash("msg"))
        self.check(set(places) == known, f"nowhere or unknown: {set(places) ^ known}")
        count = len(self.waiting) + len(held) + len(self.dead)
        self.check(len(known) + raw == count, f"{len(known)} and {raw} raw are not {count}")
        self.seen["audits"] += 1

    def _list(self, key: str) -> list[str]:
        return [element.decode() for element in self.client.lrange(key, 0, -1)]

    def _hash(self, name: str) -> dict[str, str]:
        entries = self.client.hgetall(self.queue.key(name))
        return {field.decode(): value.decode() for field, value in entries.items()}
