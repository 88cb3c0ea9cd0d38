"""Inspect the queues without changing them: what waits, who holds what, what is delayed.

Each inspection takes several commands, so on a busy server the numbers may differ by a few
messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .looks import About, Delayed, Holding, QueueLook, Subscribed, read_about
from .names import literally
from .reliable_queue import ReliableQueue
from .running import Held, running
from .stored import FIRST_READ, next_read
from .values import PRIORITY_STEPS

__all__ = [
    "BATCH",
    "About",
    "Delayed",
    "Holding",
    "QueueInspector",
    "QueueLook",
    "Subscribed",
    "read_about",
]

#: Elements read from Redis at a time.
BATCH = 200


class QueueInspector:
    """An inspector of the queues of one virtual host; it changes nothing.

    Args:
        queue: the queues.
    """

    def __init__(self, queue: ReliableQueue) -> None:
        self._queue = queue
        # The driver's types fit no reply exactly.
        self._redis: Any = queue.client

    def now_ms(self) -> int:
        """Return the time by Redis's clock, in milliseconds."""
        seconds, micros = self._redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def is_consumed(self, queue: str) -> bool:
        """Return whether a consumer with a valid lease takes from a queue; three round trips."""
        now = self.now_ms()
        names = self._redis.smembers(self._queue.key(f"consuming:{queue}"))
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.zscore(self._queue.key("consumers"), name)
        return any(end is not None and end > now for end in pipeline.execute())

    def names(self) -> list[str]:
        """Return the names of the queues that are declared or hold something, sorted."""
        found = set(self._queue.queues())
        for kind in ("delayed", "dead", "seqs"):
            prefix = self._queue.key(f"{kind}:")
            for key in self._redis.scan_iter(match=f"{literally(prefix)}*", count=1000):
                found.add(key.decode().removeprefix(prefix))
        return sorted(found)

    def subscribers(self) -> list[Subscribed]:
        """Return the registered subscribers, sorted by queue and name."""
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

    def paused(self) -> frozenset[str]:
        """Return the names of the paused queues."""
        return frozenset(self._queue.paused())

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
        """Return every consumer with what it holds, those first whose lease ends first.

        The cost grows only with the number of consumers and of messages in flight.
        """
        now, found = self.now_ms(), []
        consumers = self._redis.zrange(self._queue.key("consumers"), 0, -1, withscores=True)
        told = self._redis.hgetall(self._queue.key("about"))
        for start in range(0, len(consumers), BATCH):
            some = consumers[start : start + BATCH]
            with self._redis.pipeline(transaction=False) as pipe:
                for name, _ in some:
                    pipe.smembers(self._queue.key("queues_of:").encode() + name)
                    pipe.hgetall(self._queue.key("flight:").encode() + name)
                answers = iter(pipe.execute())
            for (name, end), queues, flight in zip(some, answers, answers, strict=True):
                about = read_about(told.get(name, b""))
                lease_ms = int(end) - now
                found.append(self._holding(name.decode(), lease_ms, about, queues, flight))
        return found

    def _holding(
        self,
        consumer: str,
        lease_ms: int,
        about: About,
        queues: Iterable[bytes],
        flight: Mapping[bytes, bytes],
    ) -> Holding:
        held = _held(flight)
        sequences = Counter((one.queue, one.sequence) for one in held if one.sequence)
        firsts, behind = self._around(sequences)
        ids = running(
            held,
            slots=about.slots or 0,
            batches=about.batches,
            firsts=firsts,
            tried=self._tried([one for one in held if one.queue in about.batches]),
        )
        return Holding(
            consumer,
            lease_ms,
            frozenset(queue.decode() for queue in queues),
            Counter(one.queue for one in held),
            Counter(one.queue for one in held if one.sequence),
            Counter(one.queue for one in held if one.id in ids),
            _lowest((one.queue, one.id) for one in held if one.id in ids),
            _lowest((one.queue, one.id) for one in held if one.id not in ids),
            _lowest((queue, one) for (queue, _), one in behind.items()),
            about,
            Counter(queue for queue, _ in sequences),
        )

    def _around(
        self, sequences: Counter[tuple[str, bytes]]
    ) -> tuple[dict[tuple[str, bytes], int], dict[tuple[str, bytes], int]]:
        """Return the first id of each sequence, and the first id behind its held messages.

        Args:
            sequences: how many messages of each sequence are held, by queue and sequence.
        """
        firsts, behind = {}, {}
        names = list(sequences)
        for start in range(0, len(names), BATCH):
            some = names[start : start + BATCH]
            with self._redis.pipeline(transaction=False) as pipe:
                for name in some:
                    pipe.lindex(self._sequence_key(*name), -1)
                    pipe.lindex(self._sequence_key(*name), -1 - sequences[name])
                answers = iter(pipe.execute())
            for name, first, following in zip(some, answers, answers, strict=True):
                if first is not None:
                    firsts[name] = int(first)
                if following is not None:
                    behind[name] = int(following)
        return firsts, behind

    def _tried(self, held: Sequence[Held]) -> set[int]:
        """Return the ids of the messages that were delivered before."""
        found: set[int] = set()
        for start in range(0, len(held), BATCH):
            ids = [one.id for one in held[start : start + BATCH]]
            tries = self._redis.hmget(self._queue.key("tries"), ids)
            found.update(one for one, count in zip(ids, tries, strict=True) if count is not None)
        return found

    def look(self, queue: str, holdings: Sequence[Holding]) -> QueueLook:
        """Count a queue's messages.

        Args:
            queue: its name.
            holdings: what `holdings` returned.
        """
        count, sequences = self._queue.count_all(queue)
        tokens = max(0, sequences.going - sum(one.sequences.get(queue, 0) for one in holdings))
        held = sum(holding.in_sequences[queue] for holding in holdings)
        in_flight = sum(holding.messages[queue] for holding in holdings)
        are_running = sum(holding.running[queue] for holding in holdings)
        return QueueLook(
            queue,
            count.ready,
            max(0, count.in_sequences - tokens - held),
            count.retrying,
            count.blocked - sequences.blocked,
            count.delayed,
            in_flight,
            in_flight - are_running,
            are_running,
            count.dead,
        )

    def oldest(self, queue: str, holdings: Sequence[Holding] = ()) -> list[tuple[bytes, bytes]]:
        """Return payload and body of the messages that are next in the queue.

        Args:
            queue: its name.
            holdings: what `holdings` returned.

        Returns:
            The next message of each priority step, the most urgent first; then the oldest message
            that waits behind a sequence in flight.
        """
        found = []
        for step in self.ready_steps(queue):
            element = self._redis.lindex(self.ready_key(queue, step), -1) or b""
            if element.startswith(b"="):
                element = next(iter(self.sequence(queue, element[1:], 1)), b"")
            found.append(self._queue.read(int(element)) if element.isdigit() else (element, b""))
        return found + self._read_lowest(queue, [one.oldest_behind for one in holdings])

    def oldest_running(self, queue: str, holdings: Sequence[Holding]) -> list[tuple[bytes, bytes]]:
        """Return payload and body of the oldest message that is running.

        Args:
            queue: its name.
            holdings: what `holdings` returned.

        Returns:
            That one message; empty if no message of the queue is running.
        """
        return self._read_lowest(queue, [one.oldest_running for one in holdings])

    def oldest_prefetched(
        self, queue: str, holdings: Sequence[Holding]
    ) -> list[tuple[bytes, bytes]]:
        """Return payload and body of the oldest message that is prefetched.

        Args:
            queue: its name.
            holdings: what `holdings` returned.

        Returns:
            That one message; empty if no message of the queue is prefetched.
        """
        return self._read_lowest(queue, [one.oldest_prefetched for one in holdings])

    def _read_lowest(
        self, queue: str, ids_by_queue: Iterable[Mapping[str, int]]
    ) -> list[tuple[bytes, bytes]]:
        # Ids grow in the order of publishing: one message is read, however many are held.
        ids = [ids[queue] for ids in ids_by_queue if queue in ids]
        return [self._queue.read(min(ids))] if ids else []

    def delayed(self, queue: str, most: int | None = None) -> Iterator[Delayed]:
        """Yield the delayed messages of a queue in the order in which they fall due, in pages.

        Args:
            queue: its name.
            most: the most messages to yield; None for all.
        """
        now, seen = self.now_ms(), 0
        while (some := BATCH if most is None else min(BATCH, most - seen)) > 0:
            page = self._delayed_page(queue, seen, some)
            messages = self._queue.read_many([first for _, first, _ in page])
            for (member, _, due), message in zip(page, messages, strict=True):
                priority, message_id, sequence = member.split(b"|", 2)
                payload, body = message or (b"", b"")
                yield Delayed(
                    int(message_id) if message_id else None,
                    queue,
                    sequence.decode(),
                    int(priority),
                    int(due) - now,
                    payload,
                    body,
                )
            seen += len(page)
            if len(page) < some:
                return

    def _delayed_page(self, queue: str, start: int, most: int) -> list[tuple[bytes, bytes, float]]:
        """Return a page of what is delayed: the member, its message's id, and when it is due."""
        key = self._queue.key(f"delayed:{queue}")
        page = []
        for member, due in self._redis.zrange(key, start, start + most - 1, withscores=True):
            _, message_id, sequence = member.split(b"|", 2)
            first = message_id or next(iter(self.sequence(queue, sequence, 1)), b"0")
            page.append((member, first, due))
        return page

    def ready(self, queue: str, step: int) -> Iterator[bytes]:
        """Yield the elements of a ready list, beginning at its head.

        If the list changes meanwhile, elements may be skipped or repeated.

        Args:
            queue: the queue's name.
            step: the priority step.
        """
        key = self.ready_key(queue, step)
        start, some = 0, FIRST_READ
        while page := self._redis.lrange(key, -start - some, -start - 1):
            yield from reversed(page)
            start += len(page)
            # An element may be a whole message, of any size.
            some = next_read(len(page), sum(map(len, page)))

    def sequence(self, queue: str, sequence: bytes, count: int = BATCH) -> list[bytes]:
        """Return the ids of the first unsettled messages of a sequence, in its order.

        Args:
            queue: the queue's name.
            sequence: the sequence's name.
            count: the most ids to return.
        """
        key = self._sequence_key(queue, sequence)
        return list(reversed(self._redis.lrange(key, -count, -1)))

    def _sequence_key(self, queue: str, sequence: bytes) -> bytes:
        return self._queue.key(f"seq:{queue}\x1f").encode() + sequence

    def read_all(self, ids: Sequence[bytes]) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield payload and body of each message; None for one that is gone or has expired.

        The messages are read when they are needed, as many at a time as fit into a limit in bytes.

        Args:
            ids: the messages' ids, in the order of the result.
        """
        now = self.now_ms()
        for start in range(0, len(ids), BATCH):
            some = ids[start : start + BATCH]
            limits = self._redis.hmget(self._queue.key("until"), some)
            for message, limit in zip(self._queue.read_many(some), limits, strict=True):
                yield None if limit and int(limit) < now else message


def _held(flight: Mapping[bytes, bytes]) -> list[Held]:
    found = []
    for key, entry in flight.items():
        fence, _, _, place = entry.split(b"|", 3)
        queue, _, sequence = place.partition(b"\x1f")
        found.append(Held(int(key), int(fence), queue.decode(), sequence))
    return found


def _lowest(ids: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Return each queue's lowest id."""
    found: dict[str, int] = {}
    for queue, one in ids:
        found[queue] = min(one, found.get(queue, one))
    return found
