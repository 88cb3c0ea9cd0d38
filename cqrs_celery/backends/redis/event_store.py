"""Append and read events in Redis. An append is atomic and includes delivery.

In one round trip, a script checks the command, the lease and every expected version, writes the
events of all streams, and puts each on the queue of every matching subscription. Positions have no
gaps, since they are the length of a list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import redis

from ...queue.reliable_queue import ReliableQueue
from ...queue.scripts import load
from ...queue.values import LetterPolicy
from ...store.capabilities import Capabilities
from ...store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    DeadLetterPolicy,
    Lease,
    StoredEvent,
    StreamAppend,
    Subscriber,
)
from ...store.paging import read_to_the_end
from ...store.refusals import (
    check_appends,
    check_command,
    check_stream,
    check_text,
    command_repeated,
    lease_lost,
    version_conflict,
)
from ...store.stream import StreamName
from .reaching import reaching
from .records import record_of, stored_event
from .snapshot_store import RedisSnapshotStore

_append = load("append", __package__ + ".scripts")
_read_all = load("read_all", __package__ + ".scripts")

#: The texts before and after an event in the body that its subscribers get.
Body = tuple[str, str]


class RedisEventStore:
    """An EventStore in one Redis database, under one key prefix.

    Args:
        client: returns a redis client that returns bytes; called once per operation, so that each
            process may have its own.
        prefix: the prefix of every key; it is the broker's, so that an append can deliver.
        body: the texts before and after an event in the body that its subscribers get.
        where: names the server in errors, without credentials.
    """

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        *,
        prefix: str = "",
        body: Body = ("", ""),
        where: str = "Redis",
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._body = body
        self._where = where
        self._keys = [f"{prefix}cq:id"]

    def __repr__(self) -> str:
        return f"<RedisEventStore {self._where}>"

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do in addition to the port; each append delivers."""
        return Capabilities(subscriptions=self, snapshots=self, checks_versions=True)

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams and deliver them, all or none; see `EventStore.append`."""
        check_appends(appends)
        check_command(command)
        metadata = next(append.events[0] for append in appends if append.events).metadata
        record = command or CommandRecord("", "", 0)
        args: list[Any] = [
            self._prefix,
            record.command_id, record.ttl_s * 1000, record.outcome,
            *(lease or ("", 0, 0)),
            *self._body,
            inside_json(metadata.correlation_id),
            inside_json(metadata.causation_id),
        ]  # fmt: skip
        for append in appends:
            key = append.stream.key
            args += (key, json.dumps(key), append.expected_version, len(append.events))
            for event in append.events:
                args += (event.type, event.event_id, record_of(event))
        with self._reach("append to " + ", ".join(str(a.stream) for a in appends)):
            answer = _append(self._client(), self._keys, args)
        return self._read_answer(answer, appends, command, lease)

    def _read_answer(
        self,
        answer: list[Any],
        appends: Sequence[StreamAppend],
        command: CommandRecord | None,
        lease: Lease | None,
    ) -> Committed:
        kind = answer[0].decode()
        if kind == "ok":
            return Committed(int(answer[1]), tuple(map(int, answer[2:])))
        if kind == "version":
            append = appends[int(answer[1]) - 1]
            raise version_conflict(
                append.stream, expected=append.expected_version, found=int(answer[2])
            )
        if kind == "command" and command is not None:
            found = CommandOutcome(int(answer[1]), answer[2].decode())
            raise command_repeated(command.command_id, found)
        raise lease_lost(lease or Lease("", 0, 0))

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return a stream's events in order; see `EventStore.read_stream`."""
        check_stream(stream)
        if limit is not None and limit <= 0:
            return []
        last = -1 if limit is None else after_version + limit - 1
        key = f"{self._prefix}cq:stream:{stream.key}"
        with self._reach(f"read {stream}"):
            records = cast("list[bytes]", self._client().lrange(key, after_version, last))
        return [stored_event(stream, record) for record in records]

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the store's events in the order of their positions; see `EventStore.read_all`."""
        if limit is None:
            return read_to_the_end(self.read_all, after_position)
        if limit <= 0:
            return []
        with self._reach(f"read from position {after_position + 1}"):
            flat = _read_all(self._client(), self._keys, [self._prefix, after_position, limit])
        return [
            stored_event(StreamName.from_key(flat[i].decode()), flat[i + 1])
            for i in range(0, len(flat), 2)
        ]

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return the outcome of a committed command; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        with self._reach(f"look up the command {command_id}"):
            value = self._client().get(f"{self._prefix}cq:command:{command_id}")
        if value is None:
            return None
        _, numbers, outcome = cast(bytes, value).decode().split("\x1f", 2)
        return CommandOutcome(int(numbers.partition(",")[0]), outcome)

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber, and the policy for its dead letters.

        Args:
            subscriber: replaces the one registered under its name, including topics that it no
                longer has.

        Returns:
            The number of topics that are new for this subscriber.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        with self._reach(f"register {subscriber.name}"):
            queue = ReliableQueue(self._client(), prefix=self._prefix)
            queue.letters.set_policy(subscriber.queue, _policy(subscriber.dead_letters))
            return queue.subscribe(
                subscriber.name,
                subscriber.topics,
                queue=subscriber.queue,
                pieces=subscriber.head,
                order=subscriber.order,
            )

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; messages already sent to it stay.

        Returns:
            The number of topics that it was removed from.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        with self._reach(f"unregister {name}"):
            return ReliableQueue(self._client(), prefix=self._prefix).unsubscribe(name, topics)

    def snapshots(self) -> RedisSnapshotStore:
        """Return the store of the streams' snapshots, in the same database."""
        return RedisSnapshotStore(self._client, prefix=self._prefix, where=self._where)

    def close(self) -> None:
        """Release all connections."""
        self._client().close()

    def _reach(self, what: str) -> AbstractContextManager[None]:
        return reaching(self._where, what)


def _policy(policy: DeadLetterPolicy) -> LetterPolicy:
    first, most, life = (
        int(seconds * 1000)
        for seconds in (policy.first_redrive_s, policy.most_redrive_s, policy.ttl_s)
    )
    return LetterPolicy(policy.kind, first, most, life, policy.crowd)


def inside_json(text: str) -> str:
    """Return a text as it is written between the quotes of a JSON string."""
    return json.dumps(text)[1:-1]
