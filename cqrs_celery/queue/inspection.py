"""Look at the queues without changing them: what waits, what is held by whom, what is delayed.

Each look is several commands, so the numbers of a busy server need not agree to the last message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from .reliable_queue import ReliableQueue
from .values import PRIORITY_STEPS

#: Elements read from Redis at a time.
BATCH = 200


class Delayed(NamedTuple):
    """Be a message, or a whole sequence, that waits for its time.

    `id` is None for a sequence, whose first message is shown; `due_in_ms` is negative when it is
    due and nobody has taken from the queue since.
    """

    id: int | None
    queue: str
    sequence: str
    priority: int
    due_in_ms: int
    payload: bytes
    body: bytes


class Holding(NamedTuple):
    """Be a consumer: its queues, what it holds by queue, and its lease.

    `in_sequences` counts those of `messages` that are in a sequence. `lease_ms` is what is left of
    the lease, in ms; negative when it has ended and nobody has recovered what it held.
    """

    consumer: str
    lease_ms: int
    queues: frozenset[str]
    messages: Counter[str]
    in_sequences: Counter[str]


class QueueLook(NamedTuple):
    """Count a queue's messages by what they wait for, each in one column.

    Only a ready sequence counts twice: as 1 in `ready`, since one worker can take it, for the first
    of its messages; those behind it count in `waiting`.

    Attributes:
        queue: its name.
        ready: what a free worker could take now.
        waiting: messages behind another one of their sequence, which is ready or in flight.
        retrying: messages of sequences whose first waits for its time.
        blocked: messages behind a dead letter of their sequence.
        delayed: messages that wait for their time.
        in_flight: messages that consumers hold.
        dead: dead letters.
    """

    queue: str
    ready: int
    waiting: int
    retrying: int
    blocked: int
    delayed: int
    in_flight: int
    dead: int


class Subscribed(NamedTuple):
    """Be a registered subscriber: its name, the queue of its messages, and its topics, sorted."""

    name: str
    queue: str
    topics: tuple[str, ...]


class QueueInspector:
    """Look at the queues of one virtual host.

    Args:
        queue: the queues.
    """

    def __init__(self, queue: ReliableQueue) -> None:
        self._queue = queue
        # The driver's types fit no reply exactly.
        self._redis: Any = queue.client

    def now_ms(self) -> int:
        """Return Redis's clock."""
        seconds, micros = self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def names(self) -> list[str]:
        """Return the queues that are declared, or hold something, sorted."""
        found = set(self._queue.queues())
        for kind in ("delayed", "dead", "seqs"):
            prefix = self._queue.key(f"{kind}:")
            for key in self._redis.scan_iter(match=f"{literally(prefix)}*", count=1000):
                found.add(key.decode().removeprefix(prefix))
        return sorted(found)

    def subscribers(self) -> list[Subscribed]:
        """Return who is registered, sorted by queue and name."""
        prefix, found = self._queue.key("topics_of:"), []
        for key in self._redis.scan_iter(match=f"{literally(prefix)}*", count=1000):
            name = key.decode().removeprefix(prefix)
            topics = sorted(topic.decode() for topic in self._redis.smembers(key))
            for topic in topics:
                route = self._redis.hget(self._queue.key(f"routes:{topic}"), name)
                if route is not None:
                    queue = str(msgspec.msgpack.decode(route)[0])
                    found.append(Subscribed(name, queue, tuple(topics)))
                    break
        return sorted(found, key=lambda one: (one.queue, one.name))

    def steps(self) -> list[int]:
        """Return the priority steps that queues may use, most urgent first."""
        used = self._redis.smembers(self._queue.key("steps"))
        return sorted({*PRIORITY_STEPS, *map(int, used)})

    def ready_steps(self, queue: str) -> list[int]:
        """Return the priority steps at which a queue has something ready, most urgent first."""
        return [step for step in self.steps() if self._redis.exists(self.ready_key(queue, step))]

    def ready_key(self, queue: str, step: int) -> str:
        """Return the full name of a queue's ready list; its head is on the right."""
        return f"{self._queue.prefix}{queue}" + (f"\x06\x16{step}" if step else "")

    def holdings(self) -> list[Holding]:
        """Return every consumer with what it holds, those first whose lease ends first."""
        now, found = self.now_ms(), []
        consumers = self._redis.zrange(self._queue.key("consumers"), 0, -1, withscores=True)
        for name, end in consumers:
            consumer = name.decode()
            messages: Counter[str] = Counter()
            in_sequences: Counter[str] = Counter()
            for entry in self._redis.hvals(self._queue.key(f"flight:{consumer}")):
                queue, _, sequence = entry.decode().split("|", 3)[3].partition("\x1f")
                messages[queue] += 1
                in_sequences[queue] += bool(sequence)
            queues = self._redis.smembers(self._queue.key(f"queues_of:{consumer}"))
            found.append(
                Holding(
                    consumer,
                    int(end) - now,
                    frozenset(queue.decode() for queue in queues),
                    messages,
                    in_sequences,
                )
            )
        return found

    def look(self, queue: str, holdings: Sequence[Holding]) -> QueueLook:
        """Count a queue's messages.

        Args:
            queue: its name.
            holdings: what `holdings` returned.
        """
        count = self._queue.count(queue)
        states = self._redis.hvals(self._queue.key(f"seqs:{queue}"))
        firsts = Counter(state[:1] for state in states)
        held = sum(holding.in_sequences[queue] for holding in holdings)
        return QueueLook(
            queue,
            count.ready,
            max(0, count.in_sequences - firsts[b"r"] - held),
            count.retrying,
            count.blocked - firsts[b"d"],
            count.delayed,
            sum(holding.messages[queue] for holding in holdings),
            count.dead,
        )

    def oldest(self, queue: str) -> list[tuple[bytes, bytes]]:
        """Return payload and body of the message that each priority step has next."""
        found = []
        for step in self.ready_steps(queue):
            element = self._redis.lindex(self.ready_key(queue, step), -1) or b""
            if element.startswith(b"="):
                element = next(iter(self.sequence(queue, element[1:], 1)), b"")
            found.append(self._queue.read(int(element)) if element.isdigit() else (element, b""))
        return found

    def delayed(self, queue: str, most: int | None = None) -> Iterator[Delayed]:
        """Yield what is delayed in a queue, what is due first first.

        Args:
            queue: its name.
            most: yield no more than these; None for all.
        """
        now, last = self.now_ms(), -1 if most is None else most - 1
        key = self._queue.key(f"delayed:{queue}")
        for member, due in self._redis.zrange(key, 0, last, withscores=True):
            priority, message_id, sequence = member.split(b"|", 2)
            first = message_id or next(iter(self.sequence(queue, sequence, 1)), b"0")
            payload, body = self._queue.read(int(first))
            yield Delayed(
                int(message_id) if message_id else None,
                queue,
                sequence.decode(),
                int(priority),
                int(due) - now,
                payload,
                body,
            )

    def ready(self, queue: str, step: int) -> Iterator[bytes]:
        """Yield the elements of a ready list from its head on; not while it changes."""
        key = self.ready_key(queue, step)
        for start in range(0, self._redis.llen(key), BATCH):
            yield from reversed(self._redis.lrange(key, -start - BATCH, -start - 1))

    def sequence(self, queue: str, sequence: bytes, count: int = BATCH) -> list[bytes]:
        """Return the ids of the first unsettled messages of a sequence, in its order."""
        key = self._queue.key(f"seq:{queue}\x1f").encode() + sequence
        return list(reversed(self._redis.lrange(key, -count, -1)))

    def read_all(self, ids: Sequence[bytes]) -> list[tuple[bytes, bytes] | None]:
        """Return payload and body of each message; None for one that is gone or has expired."""
        found: list[tuple[bytes, bytes] | None] = []
        now = self.now_ms()
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            payloads = self._redis.hmget(self._queue.key("msg"), some)
            limits = self._redis.hmget(self._queue.key("until"), some)
            for payload, limit in zip(payloads, limits, strict=True):
                is_gone = payload is None or (limit and int(limit) < now)
                found.append(None if is_gone else self._with_body(payload))
        return found

    def _with_body(self, payload: bytes) -> tuple[bytes, bytes]:
        if not payload.startswith(b"@"):
            return payload, b""
        mark, _, rest = payload.partition(b"\n")
        return rest, self._redis.hget(self._queue.key("body"), mark[1:]) or b""


def literally(text: str) -> str:
    """Return a text as it stands in a pattern of SCAN."""
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)
