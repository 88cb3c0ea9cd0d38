"""Publish, take and settle messages in Redis.

Each method is one script, so one round trip, and happens whole or not at all, but for those that
recover what consumers held, and those that read. Redis's clock decides everything that has to do
with time. Errors of the driver pass through unchanged: whether to repeat is the caller's to know (a
publish with a publish id may be repeated safely).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import msgspec
import redis

from ..queue import recovery
from .dead_letters import DeadLetters
from .scripts import Script, load
from .upkeep import FORMAT, Upkeep
from .values import (
    Beat,
    Destination,
    Exchange,
    FullQueue,
    Publish,
    QueueCount,
    Recovered,
    SequenceCount,
    Settlement,
    Taken,
)

#: Milliseconds for which a publish id is remembered. Longer than any client repeats a publish.
DEDUP_TTL_MS = 120_000

#: The most messages purged in one script, so that the server is never blocked for long.
PURGE_BATCH = 1_000

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
_publish_topic = load("publish_topic")
_subscribe = load("subscribe")
_settle_and_take = load("settle_and_take")
_beat = load("beat")
_consume = load("consume")
_purge = load("purge")
_count = load("count")
_declare = load("declare")
_expired = load("expired")
_disown = load("disown")
_forget_gone = load("forget_gone")
_pause = load("pause")
_resume = load("resume")

#: Bytes of messages that are read in one step, unless a single one is larger; a take has the same.
MOST_BYTES = 16 * 2**20

#: Messages that are read in the first step, before it is known how large they are, and at most.
FIRST_READ, MOST_READ = 16, 200

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

#: In no queue's name: what divides names within a key, and a queue from its priority step.
_DIVIDERS = ("\x1f", "\x06\x16")


def is_writable(text: str) -> bool:
    """Return whether the server can be told a text; half of a surrogate pair has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_queue_name(value: Any) -> bool:
    """Return whether a value that anybody may have chosen can name a queue."""
    return isinstance(value, str) and value != "" and _is_free(value) and is_writable(value)


def _is_free(name: str) -> bool:
    return not (name.startswith("cq:") or any(divider in name for divider in _DIVIDERS))


def _checked(queue: str) -> str:
    if not _is_free(queue):
        raise ValueError(
            f"{queue!r} cannot name a queue: names beginning with cq: are the queue's own keys, and"
            " \\x1f and \\x06\\x16 divide names within them. Choose another name"
        )
    return queue


def next_read(count: int, size: int) -> int:
    """Return how many to read in the next step, after so many that had so many bytes."""
    return max(1, min(MOST_READ, MOST_BYTES * count // max(1, size)))


def key_of(prefix: str, name: str) -> str:
    """Return the full name of one of the keys of the queues under a prefix."""
    return f"{prefix}cq:{name}"


class ReliableQueue:
    """Be one virtual host's queues: those under one key prefix of one Redis database.

    Args:
        client: a redis client that returns bytes.
        prefix: in front of every key; on Redis Cluster it holds the hash tag, as `{shop}.`.
        dedup_ttl_ms: milliseconds for which a publish id is remembered.
    """

    def __init__(
        self, client: redis.Redis, *, prefix: str = "", dedup_ttl_ms: int = DEDUP_TTL_MS
    ) -> None:
        self.client = client
        self.prefix = prefix
        self.dedup_ttl_ms = dedup_ttl_ms
        self._keys = self.routing_keys = [f"{prefix}cq:id"]
        #: queues that limit no message's time, each with the monotonic time until which that counts
        self._without_ttl: dict[str, float] = {}
        #: What was set aside.
        self.letters = DeadLetters(client, prefix=prefix)
        #: The form of the keys, and the counts of what stands in sequences.
        self.upkeep = Upkeep(client, prefix=prefix)

    def key(self, name: str) -> str:
        """Return the full name of one of the queue's own keys."""
        return key_of(self.prefix, name)

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
        answer = _publish(self.client, self._keys, self._publish_args(publish))
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
        answers = _publish.call_many(self.client, self._keys, calls)
        return sum(map(self._published, sent, answers))

    def _publish_args(self, publish: Publish) -> list[Any]:
        _, publish_id, delay_ms, ttl_ms, body = publish
        args: list[Any] = [self.prefix, publish_id, self.dedup_ttl_ms, delay_ms, ttl_ms, body]
        asks, now = False, time.monotonic()
        for to in publish.destinations:
            args += (_checked(to.queue), to.priority, to.sequence, to.payload)
            asks = asks or (not to.sequence and self._without_ttl.get(to.queue, 0.0) < now)
        if asks:
            args[4] = f"{ttl_ms}?"
        return args

    def _published(self, publish: Publish, answer: Any) -> int:
        """Return how many messages were stored; remember where no queue has a limit."""
        if not isinstance(answer, list):
            return int(answer)
        count, has_limit = map(int, answer)
        if not has_limit:
            if len(self._without_ttl) > NO_TTL_QUEUES:
                self._without_ttl.clear()
            until = time.monotonic() + NO_TTL_S
            self._without_ttl |= {to.queue: until for to in publish.destinations if not to.sequence}
        return count

    def publish_topic(
        self,
        topic: str,
        body: str | bytes,
        *,
        message_id: str,
        root_id: str,
        parent_id: str = "",
        sequence: str = "",
        publish_id: str = "",
        capacity: int = 0,
    ) -> int | FullQueue | None:
        """Give a message to every subscriber of a topic, or to none; once per publish id.

        Args:
            topic: what the subscribers registered for.
            body: kept once for all of them.
            message_id: fills the id holes of their heads.
            root_id: fills the root hole.
            parent_id: fills the parent hole.
            sequence: what it must stay in order with; "" for nothing.
            publish_id: the same for every repetition of one publish; "" never deduplicates.
            capacity: how many messages may wait in each of their queues before this one, those that
                workers hold not counted; 0 for any number.

        Returns:
            The number of queues it went to; None if this publish id was seen; a queue that is full,
            and then it went to none.
        """
        args = [self.prefix, publish_id, self.dedup_ttl_ms, topic, body]
        args += [message_id, root_id, parent_id, sequence, capacity]
        answer = _publish_topic(self.client, self._keys, args)
        if isinstance(answer, list):
            return FullQueue(answer[0].decode(), int(answer[1]))
        return None if int(answer) < 0 else int(answer)

    def subscribe(
        self,
        subscriber: str,
        topics: Sequence[str],
        *,
        queue: str,
        pieces: Sequence[str],
        priority: int = 0,
        order: str = "aggregate",
    ) -> int:
        """Register, or replace, a subscriber of topics; it stays until it is unsubscribed.

        Args:
            subscriber: its name; the task's.
            topics: what it gets.
            queue: where it gets it.
            pieces: the five pieces of a message's head. Between them go the message id, the
                message id, the root id and the parent id.
            priority: the priority step of its messages.
            order: "aggregate": those of one publisher's sequence stay in order; "subscription": all
                of the queue do; "none".

        Returns:
            The number of topics that are new to it.

        Raises:
            ValueError: there are not 5 pieces, or the queue's name would collide with its own keys.
        """
        if len(pieces) != 5:
            raise ValueError(f"a head has 5 pieces around its 4 holes, not {len(pieces)}")
        args = [self.prefix, subscriber, _checked(queue), priority, *pieces, order, *topics]
        return int(_subscribe(self.client, self._keys, args))

    def unsubscribe(self, subscriber: str, topics: Iterable[str]) -> int:
        """Remove a subscriber from topics; returns from how many. What it was sent stays."""
        with self.client.pipeline(transaction=True) as pipe:
            for topic in topics:
                pipe.hdel(self.key(f"routes:{topic}"), subscriber)
                pipe.srem(self.key(f"topics_of:{subscriber}"), topic)
            return sum(pipe.execute()[::2])

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
        head, *pieces = _settle_and_take(self.client, self._keys, args)
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
        return bool(_disown(self.client, self._keys, args))

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
        """Say which queues wake this consumer, and what it is, in place of what was said before.

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
        _consume(self.client, self._keys, [self.prefix, consumer, known, *queues])

    def beat(self, consumer: str, lease_ms: int, *, register: bool = False) -> Beat:
        """Renew a consumer's lease, also one that ended and was not recovered yet.

        Args:
            consumer: whose lease.
            lease_ms: milliseconds from now, by Redis's clock.
            register: start a lease for a consumer that is unknown.
        """
        held, *counts = _beat(
            self.client, self._keys, [self.prefix, consumer, lease_ms, int(register)]
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
            cursor, count = _forget_gone(self.client, self._keys, [self.prefix, cursor])
            total += int(count)
            if int(cursor) == 0:
                return total

    def read(self, message_id: int) -> tuple[bytes, bytes]:
        """Return a stored message's payload and shared body; empty where there is none."""
        return self._with_body(
            cast(bytes, self.client.hget(self.key("msg"), str(message_id)) or b"")
        )

    def read_many(self, message_ids: Sequence[int | bytes]) -> Iterator[tuple[bytes, bytes] | None]:
        """Yield payload and shared body of each message; None for one that is not stored.

        They are read as they are asked for, about `MOST_BYTES` in one step.
        """
        client: Any = self.client
        start, some = 0, FIRST_READ
        while start < len(message_ids):
            ids = message_ids[start : start + some]
            payloads = client.hmget(self.key("msg"), ids)
            size = 0
            for payload in payloads:
                found = None if payload is None else self._with_body(payload)
                size += sum(map(len, found or ()))
                yield found
            start += len(ids)
            some = next_read(len(ids), size)

    def _with_body(self, payload: bytes) -> tuple[bytes, bytes]:
        if not payload.startswith(b"@"):
            return payload, b""
        mark, _, rest = payload.partition(b"\n")
        body = cast("bytes | None", self.client.hget(self.key("body"), mark[1:].decode()))
        return rest, body or b""

    def declare(self, queue: str, *, expires_ms: int = 0, ttl_ms: int | None = None) -> None:
        """Make a queue known, so that it is listed while it is empty.

        Args:
            queue: its name.
            expires_ms: milliseconds after which it is deleted with its messages, if by then it has
                no consumer and was not declared anew; 0 for never.
            ttl_ms: milliseconds for which a message may wait in it, whoever publishes it; see
                `publish`. 0 for no limit; None for what was declared before.

        Raises:
            ValueError: its name would collide with the queue's own keys.
        """
        limit = "" if ttl_ms is None else ttl_ms
        _declare(self.client, self._keys, [self.prefix, _checked(queue), expires_ms, limit])
        self._without_ttl.pop(queue, None)

    def delete_expired(self) -> list[str]:
        """Delete the unused queues whose time is over, with their messages; returns their names.

        A queue is known until its last message is gone: what ends in between, another call resumes.
        """
        names = [name.decode() for name in _expired(self.client, self._keys, [self.prefix])]
        gone = [name for name in names if self._purge(name, must_be_expired=True) == 0]
        for name in gone:
            self.upkeep.forget(name)
        return gone

    def _purge(self, queue: str, *, must_be_expired: bool) -> int:
        """Purge until nothing is left; returns the last answer, below 0 if it may not be."""
        while True:
            args = [self.prefix, queue, PURGE_BATCH, int(must_be_expired)]
            if (count := int(_purge(self.client, self._keys, args))) <= 0:
                return count

    def pause(self, queues: Sequence[str]) -> list[str]:
        """Pause queues: from now on nobody takes anything from them; all of it is kept, in order.

        What consumers hold is theirs to finish, or to give back. A queue need not be known, and
        stays paused until it is resumed, whatever restarts meanwhile.

        Returns:
            Those that were not paused before.
        """
        return self._changed(_pause, queues)

    def resume(self, queues: Sequence[str]) -> list[str]:
        """Let paused queues go on; returns those that were paused."""
        return self._changed(_resume, queues)

    def _changed(self, script: Script, queues: Sequence[str]) -> list[str]:
        flags = script(self.client, self._keys, [self.prefix, *queues]) if queues else ()
        return [queue for queue, flag in zip(queues, flags, strict=True) if flag]

    def paused(self) -> list[str]:
        """Return the queues that are paused, sorted."""
        names = cast("set[bytes]", self.client.smembers(self.key("paused")))
        return sorted(name.decode() for name in names)

    def forget(self, queue: str) -> None:
        """Make a queue unknown again; its messages stay."""
        with self.client.pipeline(transaction=True) as pipe:
            for name in ("queues", "called", "raw"):
                pipe.srem(self.key(name), queue)
            pipe.execute()

    def exists(self, queue: str) -> bool:
        """Say whether a queue was declared."""
        return bool(self.client.sismember(self.key("queues"), queue))

    def queues(self) -> list[str]:
        """Return the names of the declared queues, sorted."""
        names = cast("set[bytes]", self.client.smembers(self.key("queues")))
        return sorted(name.decode() for name in names)

    def purge(self, queue: str) -> int:
        """Delete a queue's messages except those in flight and dead; returns how many."""
        total = 0
        while count := int(_purge(self.client, self._keys, [self.prefix, queue, PURGE_BATCH, 0])):
            total += count
        return total

    def delete(self, queue: str) -> int:
        """Purge a queue and forget that it was declared; returns how many messages it had."""
        count = self.purge(queue)
        self.forget(queue)
        self.upkeep.forget(queue)
        self.client.hdel(self.key("ttl"), queue)
        self.client.srem(self.key("paused"), queue)
        return count

    def count(self, queue: str) -> QueueCount:
        """Count a queue's messages by what they wait for, without going through them."""
        return self.count_all(queue)[0]

    def count_all(self, queue: str) -> tuple[QueueCount, SequenceCount]:
        """Count a queue's messages and its sequences by what they wait for; one round trip."""
        numbers = [int(n) for n in _count(self.client, self._keys, [self.prefix, queue])]
        return QueueCount(*numbers[:6]), SequenceCount(*numbers[6:])
