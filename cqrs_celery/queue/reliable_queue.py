"""Publish, take and settle messages in Redis: the data path.

Each method is one script, so one round trip, and happens whole or not at all, but for those that
recover what consumers held, and those that read. Redis's clock decides everything that has to do
with time. Errors of the driver pass through unchanged: whether to repeat is the caller's to know (a
publish with a publish id may be repeated safely). Queues are administered in `administration`,
topics are in `topics`.
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

#: The most messages taken at once for batches, so that the server is never blocked for long.
MOST_IN_BATCHES = 1_000

#: Seconds for which it is remembered that a queue limits no message's time: a limit that another
#: process declares counts here after that long.
NO_TTL_S = 1.0

#: Queues of which that is remembered at most.
NO_TTL_QUEUES = 1_000

#: No queue has batches.
NO_BATCHES: Mapping[str, int] = MappingProxyType({})

_publish = load("publish")
_settle_and_take = load("settle_and_take")
_beat = load("beat")
_consume = load("consume")
_disown = load("disown")
_forget_gone = load("forget_gone")

#: The settlements that have a text.
_WITH_TEXT = "ld"

#: Reads what is in front of the messages themselves in the answer of settle_and_take.lua.
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

#: Where the count of tries begins of a message that has a dead letter; the scripts have it too.
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
        prefix: in front of every key; on Redis Cluster it holds the hash tag, as `{shop}.`.
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
            destinations: one a queue, each with its payload; empty stores nothing.
            publish_id: the same for every repetition of one publish; "" never deduplicates.
            delay_ms: milliseconds before it may be taken; 0 for at once.
            ttl_ms: milliseconds for which it may wait to be taken, from when it is due; then it is
                dropped. 0 for no limit but the queue's own, of which the sooner one counts;
                messages in a sequence have none.
            body: kept once for all; then each payload is only the head that goes before it.

        Returns:
            How many messages were stored; 0 if this publish id was seen.

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

        Each is stored on all its queues or on none, but not all of them together: after an error
        some may have been. Repeat the call then; those with a publish id are not stored twice.

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
        """Return how many messages were stored; remember where no queue has a limit."""
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
            consumer: who asks; it must have beaten with `register`.
            settlements: each counts only if the consumer still holds that delivery.
            queues: in the order of their turn; they share the deliveries, and what one does not
                need is left to the others.
            count: the most deliveries to take; of a sequence only the first message counts. 0
                only settles.
            run: the most messages of one sequence; those behind the first must wait for it, and
                are held so that no round trip lies between them.
            batches: the queues of which one delivery holds many messages, each with the most that
                it holds, those of one sequence included. At most `MOST_IN_BATCHES` are taken of
                all of them together.
            was_idle: True if the last take brought nothing.

        Returns:
            What was refused, revoked and taken. Nothing is taken for an unknown consumer, and
            nothing of a paused queue.
        """
        operations = "".join([f"{s.operation}{s.id}.{s.fence}.{s.delay_ms}" for s in settlements])
        args: list[Any] = [self.prefix, consumer, operations, count, run, int(was_idle)]
        args += (MOST_IN_BATCHES, len(queues))
        for queue in queues:
            args += (queue, batches.get(queue, 1))
        args += [s.text for s in settlements if s.operation in _WITH_TEXT]
        return _exchange_of(*_settle_and_take(self.client, self.routing_keys, args))

    def disown(self, consumer: str, taken: Taken, *, origin: str, sequence: str, why: str) -> bool:
        """Set a bare number aside that lay in a queue, and is the id of another queue's message.

        Args:
            consumer: who has taken it.
            taken: the delivery.
            origin: the queue that the message says it was published to; see `is_queue_name`.
            sequence: that it says it is in; "" for none.
            why: JSON text for whoever reads the dead letter.

        Returns:
            False if the message is nowhere else; then the delivery is what it seems to be.
        """
        args = [self.prefix, consumer, taken.id, taken.fence, taken.queue, origin, sequence, why]
        return bool(_disown(self.client, self.routing_keys, args))

    def in_flight(self, consumer: str) -> dict[int, int]:
        """Return the ids of the messages that a consumer holds, each with its fence."""
        entries = cast("dict[bytes, bytes]", self.client.hgetall(self.key(f"flight:{consumer}")))
        return {int(key): int(entry.split(b"|", 1)[0]) for key, entry in entries.items()}

    def fence_of(self, consumer: str, message_id: int) -> int | None:
        """Return the fence under which a consumer holds a message; None if it does not."""
        entry = cast(
            "bytes | None", self.client.hget(self.key(f"flight:{consumer}"), str(message_id))
        )
        return None if entry is None else int(entry.split(b"|", 1)[0])

    def consume(
        self, consumer: str, queues: Sequence[str], *, about: Mapping[str, Any] | None = None
    ) -> None:
        """Register which queues wake this consumer, and what it is, in place of what was known.

        Nothing happens for a consumer that is unknown, as one whose lease has ended and that was
        recovered.

        Args:
            consumer: its name; it has beaten with `register`.
            queues: theirs.
            about: plain values. Recovery reads `slots`, how many messages the consumer handles at
                once (0 or missing: not known, all that it holds), and `batches`, the queues of
                which it handles many messages as one, each with how many. Any other value is for
                whoever looks.
        """
        known = msgspec.json.encode({**(about or {}), "format": FORMAT})
        _consume(self.client, self.routing_keys, [self.prefix, consumer, known, *queues])

    def beat(self, consumer: str, lease_ms: int, *, register: bool = False) -> Beat:
        """Renew a consumer's lease, also one that ended and was not recovered yet.

        Args:
            consumer: whose lease.
            lease_ms: milliseconds from now, by Redis's clock.
            register: start a lease for a consumer that is unknown.
        """
        held, *counts = _beat(
            self.client, self.routing_keys, [self.prefix, consumer, lease_ms, int(register)]
        )
        return Beat(bool(held), *map(int, counts))

    def lease_ends(self, *, before_ms: float = math.inf, after_ms: float = 0) -> dict[str, float]:
        """Return when leases end, in ms of Redis's clock, by consumer, the first to end first.

        Args:
            before_ms: of those that end earlier.
            after_ms: of those that end later.
        """
        client: Any = self.client
        bounds = f"({after_ms:.0f}", f"({before_ms:.0f}" if before_ms < math.inf else "+inf"
        found = client.zrangebyscore(self.key("consumers"), *bounds, withscores=True)
        return {name.decode(): end for name, end in found}

    def recover(
        self, *, most_tries: int = 0, ended: Mapping[str, float | None] | None = None
    ) -> list[Recovered]:
        """Give back what consumers hold that have ended, in slices; each message once.

        Args:
            most_tries: a message delivered that often without a settlement becomes a dead letter;
                0 for no limit.
            ended: the consumers, each with the end of its lease as it was seen, None for any; one
                that was renewed since is left alone. None for all whose lease has ended. Then the
                caller must know that they are dead: after an outage of Redis all leases have ended.

        Returns:
            What was recovered from whom.
        """
        if ended is None:
            seconds, micros = self.client.time()
            ended = {**self.lease_ends(before_ms=seconds * 1000 + micros // 1000)}
        return recovery.end_and_recover(self, ended.items(), most_tries=most_tries)

    def leave(self, consumer: str) -> list[Recovered]:
        """Give back at once everything that a consumer holds, and forget the consumer."""
        return recovery.end_and_recover(self, [(consumer, None)], is_leaving=True)

    def forget_gone(self) -> int:
        """Forget what is left of consumers that are gone; returns how many they were."""
        cursor, total = b"0", 0
        while True:
            cursor, count = _forget_gone(self.client, self.routing_keys, [self.prefix, cursor])
            total += int(count)
            if int(cursor) == 0:
                return total
