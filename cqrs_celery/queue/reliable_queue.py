"""Publish, take and settle messages in Redis: the data path.

Each method is one script: one round trip, done completely or not at all. The exceptions are the
methods that recover the messages of other consumers, and those that read. All times are by Redis's
clock. Errors of the driver pass through unchanged: the caller decides whether to repeat the call (a
publish with a publish id may be repeated safely). The administration of queues is in
`administration`, topics are in `topics`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import msgspec

from ..queue import recovery
from .administration import Administration
from .names import checked, is_queue_name, is_writable, key_of
from .scripts import load
from .stored import MOST_BYTES
from .topics import TopicQueues
from .upkeep import FORMAT
from .values import (
    Beat,
    Destination,
    Exchange,
    Publish,
    Recovered,
    Settlement,
    Taken,
)
from .virtual_host import DEDUP_TTL_MS

__all__ = [
    "DEDUP_TTL_MS",
    "MOST_BYTES",
    "MOST_IN_BATCHES",
    "NO_BATCHES",
    "ReliableQueue",
    "is_queue_name",
    "is_writable",
    "key_of",
]

#: The most messages that one take brings for batches, so that the server is never blocked for long.
MOST_IN_BATCHES = 1_000

#: Seconds for which this process remembers that a queue has no limit on a message's waiting time: a
#: limit that another process declares takes effect here after that long.
NO_TTL_S = 1.0

#: The most queues for which that is remembered.
NO_TTL_QUEUES = 1_000

#: No queue has batches.
NO_BATCHES: Mapping[str, int] = MappingProxyType({})

_publish = load("publish")
_settle_and_take = load("settle_and_take")
_beat = load("beat")
_consume = load("consume")
_disown = load("disown")
_forget_gone = load("forget_gone")

#: The operations of settlements that have a text.
_WITH_TEXT = "ld"

#: Decodes the part of settle_and_take.lua's answer that precedes the messages themselves.
_read_head = msgspec.msgpack.Decoder(
    tuple[
        int,
        tuple[int, ...],
        tuple[int, ...],
        int,
        int,
        int,
        list[tuple[int, str, str, int, int, int]],
        tuple[str, ...],
    ],
    strict=False,
).decode

#: The first count of tries of a message that has a dead letter; the scripts have the same number.
_LETTER = 1_000_000


def _exchange_of(head: bytes, *pieces: bytes) -> Exchange:
    """Return what the script settle_and_take has answered."""
    known, refused, revoked, due, take, firsts, taken, paused = _read_head(head)
    piece = iter(pieces)
    return Exchange(
        is_known=bool(known),
        refused=refused,
        revoked=revoked,
        due_in_ms=None if due < 0 else due,
        taken=[
            Taken(
                i,
                take + 2 * place + (place >= firsts),
                q,
                s,
                p,
                t % _LETTER,
                next(piece),
                next(piece) if has_body else b"",
                t >= _LETTER,
                take,
            )
            for place, (i, q, s, p, t, has_body) in enumerate(taken)
        ],
        paused=paused,
    )


class ReliableQueue(Administration, TopicQueues):
    """One virtual host's queues: those under one key prefix of one Redis database.

    Args:
        client: a redis client that returns bytes.
        prefix: the prefix of every key; on Redis Cluster it holds the hash tag, as in `{shop}.`.
        dedup_ttl_ms: milliseconds for which a publish id is remembered.
    """

    def publish(
        self,
        destinations: Sequence[Destination],
        *,
        publish_id: str = "",
        delay_ms: int = 0,
        ttl_ms: int = 0,
        body: str | bytes = "",
    ) -> int:
        """Store a message on all its queues, or on none; once per publish id.

        Args:
            destinations: one per queue, each with its payload; if empty, nothing is stored.
            publish_id: the same for every repetition of one publish; "" never deduplicates.
            delay_ms: milliseconds before the message may be taken; 0 for at once.
            ttl_ms: milliseconds for which the message may wait to be taken after it is due; then
                it is dropped. 0 for no limit of its own. If the queue has a limit too, the shorter
                one counts. Messages in a sequence have no limit.
            body: the body that all queues share, stored once; each payload is then only the head in
                front of it.

        Returns:
            How many messages were stored; 0 if this publish id was seen before.

        Raises:
            ValueError: a queue's name would collide with the queue's own keys.
        """
        if not destinations:
            return 0
        publish = Publish(destinations, publish_id, delay_ms, ttl_ms, body)
        answer = _publish(self.client, self.routing_keys, self._publish_args(publish))
        return self._published(publish, answer)

    def publish_many(self, publishes: Sequence[Publish]) -> int:
        """Publish messages in one round trip, each as `publish` does.

        Each message is stored on all its queues or on none. The messages together are not atomic:
        after an error, some may be stored. Repeat the call then; messages with a publish id are not
        stored twice.

        Args:
            publishes: the messages; one without destinations is skipped.

        Returns:
            How many messages were stored.

        Raises:
            ValueError: a queue's name would collide with the queue's own keys; nothing was sent.
        """
        sent = [publish for publish in publishes if publish.destinations]
        calls = [self._publish_args(publish) for publish in sent]
        answers = _publish.call_many(self.client, self.routing_keys, calls)
        return sum(map(self._published, sent, answers))

    def _publish_args(self, publish: Publish) -> list[Any]:
        _, publish_id, delay_ms, ttl_ms, body = publish
        args: list[Any] = [self.prefix, publish_id, self.dedup_ttl_ms, delay_ms, ttl_ms, body]
        asks, now = False, time.monotonic()
        for to in publish.destinations:
            args += (checked(to.queue), to.priority, to.sequence, to.payload)
            asks = asks or (not to.sequence and self.without_ttl.get(to.queue, 0.0) < now)
        if asks:
            args[4] = f"{ttl_ms}?"
        return args

    def _published(self, publish: Publish, answer: Any) -> int:
        """Return how many messages were stored; remember the queues if none has a limit."""
        if not isinstance(answer, list):
            return int(answer)
        count, has_limit = map(int, answer)
        if not has_limit:
            if len(self.without_ttl) > NO_TTL_QUEUES:
                self.without_ttl.clear()
            until = time.monotonic() + NO_TTL_S
            self.without_ttl |= {to.queue: until for to in publish.destinations if not to.sequence}
        return count

    def settle_and_take(
        self,
        consumer: str,
        settlements: Sequence[Settlement] = (),
        *,
        queues: Sequence[str] = (),
        count: int = 0,
        run: int = 1,
        batches: Mapping[str, int] = NO_BATCHES,
        was_idle: bool = False,
    ) -> Exchange:
        """Settle what a consumer has finished, then take what is next, in one round trip.

        Args:
            consumer: the consumer's name; it must have called `beat` with `register`.
            settlements: each counts only if the consumer still holds that delivery.
            queues: the queues to take from, in the order of their turn. They share `count`: what
                one does not need is left to the others.
            count: the most deliveries to take; of a sequence only the first message counts. With 0,
                the call only settles.
            run: the most messages of one sequence. Those behind the first must wait for it; the
                consumer holds them already, so that no round trip is needed between them.
            batches: the queues of which one delivery holds many messages, each with the most that
                it holds, messages of one sequence included. At most `MOST_IN_BATCHES` are taken
                from all of these queues together.
            was_idle: True if the last take brought nothing.

        Returns:
            What was refused, revoked and taken. Nothing is taken for an unknown consumer or from a
            paused queue.
        """
        operations = "".join([f"{s.operation}{s.id}.{s.fence}.{s.delay_ms}" for s in settlements])
        args: list[Any] = [self.prefix, consumer, operations, count, run, int(was_idle)]
        args += (MOST_IN_BATCHES, len(queues))
        for queue in queues:
            args += (queue, batches.get(queue, 1))
        args += [s.text for s in settlements if s.operation in _WITH_TEXT]
        return _exchange_of(*_settle_and_take(self.client, self.routing_keys, args))

    def disown(self, consumer: str, taken: Taken, *, origin: str, sequence: str, why: str) -> bool:
        """Set aside a bare number that was pushed into a queue and is another queue's message id.

        Args:
            consumer: the consumer that has taken it.
            taken: the delivery.
            origin: the queue that the message names as its own; see `is_queue_name`.
            sequence: the sequence that the message names; "" for none.
            why: the reason, as JSON text, for whoever reads the dead letter.

        Returns:
            False if the message is in no other queue; then it belongs to the queue that it was
            taken from.
        """
        args = [self.prefix, consumer, taken.id, taken.fence, taken.queue, origin, sequence, why]
        return bool(_disown(self.client, self.routing_keys, args))

    def in_flight(self, consumer: str) -> dict[int, int]:
        """Return the ids of the messages that a consumer holds, each with its fence."""
        entries = cast("dict[bytes, bytes]", self.client.hgetall(self.key(f"flight:{consumer}")))
        return {int(key): int(entry.split(b"|", 1)[0]) for key, entry in entries.items()}

    def fence_of(self, consumer: str, message_id: int) -> int | None:
        """Return the fence under which a consumer holds a message; None if it does not hold it."""
        entry = cast(
            "bytes | None", self.client.hget(self.key(f"flight:{consumer}"), str(message_id))
        )
        return None if entry is None else int(entry.split(b"|", 1)[0])

    def consume(
        self, consumer: str, queues: Sequence[str], *, about: Mapping[str, Any] | None = None
    ) -> None:
        """Register the queues that wake a consumer and its description, replacing the earlier ones.

        Nothing happens if the consumer is unknown, for example because its lease has ended and its
        messages were recovered.

        Args:
            consumer: its name; it must have called `beat` with `register`.
            queues: the names of the queues.
            about: plain values that describe the consumer. Recovery reads `slots`, how many
                messages the consumer handles at once (0 or missing: unknown, all that it holds),
                and `batches`, the queues of which it handles many messages as one, each with how
                many. Any other value is only for display.
        """
        known = msgspec.json.encode({**(about or {}), "format": FORMAT})
        _consume(self.client, self.routing_keys, [self.prefix, consumer, known, *queues])

    def beat(self, consumer: str, lease_ms: int, *, register: bool = False) -> Beat:
        """Renew a consumer's lease, even one that has ended, as long as it was not recovered.

        Args:
            consumer: the consumer's name.
            lease_ms: milliseconds that the lease lasts from now, by Redis's clock.
            register: True to start a lease if the consumer is unknown.

        Returns:
            Whether the lease is held, and what else is due in the queues.
        """
        held, *counts = _beat(
            self.client, self.routing_keys, [self.prefix, consumer, lease_ms, int(register)]
        )
        return Beat(bool(held), *map(int, counts))

    def lease_ends(self, *, before_ms: float = math.inf, after_ms: float = 0) -> dict[str, float]:
        """Return when leases end, by consumer, in milliseconds of Redis's clock.

        Args:
            before_ms: return only leases that end earlier.
            after_ms: return only leases that end later.

        Returns:
            The ends, the first to end first.
        """
        client: Any = self.client
        bounds = f"({after_ms:.0f}", f"({before_ms:.0f}" if before_ms < math.inf else "+inf"
        found = client.zrangebyscore(self.key("consumers"), *bounds, withscores=True)
        return {name.decode(): end for name, end in found}

    def recover(
        self, *, most_tries: int = 0, ended: Mapping[str, float | None] | None = None
    ) -> list[Recovered]:
        """Return the messages of ended consumers to their queues, in slices; each message once.

        Args:
            most_tries: a message that was delivered this often without a settlement becomes a dead
                letter; 0 for no limit.
            ended: the consumers, each with the end of its lease as it was seen, or None for any
                end. A consumer that has renewed its lease since is left alone. If `ended` itself is
                None, all consumers whose lease has ended are recovered. The caller must then know
                that they are dead: after an outage of Redis all leases have ended.

        Returns:
            The outcome for each consumer.
        """
        if ended is None:
            seconds, micros = self.client.time()
            ended = {**self.lease_ends(before_ms=seconds * 1000 + micros // 1000)}
        return recovery.end_and_recover(self, ended.items(), most_tries=most_tries)

    def leave(self, consumer: str) -> list[Recovered]:
        """Return all messages of a consumer to their queues at once, and forget the consumer.

        Args:
            consumer: its name.

        Returns:
            The outcome, as one item.
        """
        return recovery.end_and_recover(self, [(consumer, None)], is_leaving=True)

    def forget_gone(self) -> int:
        """Delete what is left of consumers that are gone; return how many consumers these were."""
        cursor, total = b"0", 0
        while True:
            cursor, count = _forget_gone(self.client, self.routing_keys, [self.prefix, cursor])
            total += int(count)
            if int(cursor) == 0:
                return total
