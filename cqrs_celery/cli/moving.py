"""Move messages from stock Kombu's form in Redis to ours, and back, without loss or duplicates.

A script moves each message, and verifies that it is still at its place. So a crash at any moment
loses nothing, and a repeated move continues from there. While a list is being moved, its finished
part is set aside (see `to_stock.lua`). The order is kept; messages that arrive meanwhile come last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any, NamedTuple

from ..queue.inspection import BATCH, QueueInspector
from ..queue.names import literally
from ..queue.reliable_queue import ReliableQueue
from ..queue.scripts import load
from ..queue.stored import MOST_BYTES
from ..transport.channel import Channel
from .stock import redelivered, stock_message, wants_of

#: How often in a row a script may find no message at its place before the move gives up.
PATIENCE = 100

_from_stock = load("from_stock")
_to_stock = load("to_stock")
_adopt = load("adopt")
_restore_unacked = load("restore_unacked")


class Place(NamedTuple):
    """The place of a message.

    Attributes:
        where: the element of a ready list, or the member of the delayed set, that is the message,
            or stands for its sequence.
        id: the message's id; empty if a stock producer pushed it.
        due_ms: when it is due, in milliseconds of Redis's clock; None for at once.
    """

    where: bytes
    id: bytes
    due_ms: int | None = None


class OthersInterfere(RuntimeError):
    """Another process keeps taking messages that are being moved."""


@dataclass
class Moved:
    """The numbers of a queue's messages that were moved, or would be.

    Attributes:
        queue: the queue's name.
        messages: the messages to deliver, including delayed ones.
        unacked: how many of these stock workers had taken.
        delayed: how many of these wait for their time.
        sequenced: how many of the ready ones are in a sequence.
        expired: the messages that were deleted because they had waited too long.
        blocked: the messages that stay, since a dead letter is before them in their sequence.
        dead: the dead letters, which stay.
    """

    queue: str
    messages: int = 0
    unacked: int = 0
    delayed: int = 0
    sequenced: int = 0
    expired: int = 0
    blocked: int = 0
    dead: int = 0


@dataclass
class Unacked:
    """The messages that stock workers had taken and not acknowledged.

    Attributes:
        entries: tag, message, and queues with their priority steps; the last taken comes first.
        left: the number of messages that can't be read, or belong to no known queue; they stay.
    """

    entries: list[tuple[bytes, bytes, list[tuple[str, int]]]] = field(default_factory=list)
    left: int = 0

    @property
    def queues(self) -> set[str]:
        """The queues that the messages go back to."""
        return {name for _, _, places in self.entries for name, _ in places}

    def of(self, queues: Collection[str]) -> list[tuple[bytes, bytes, list[tuple[str, int]]]]:
        """Return the entries that go back to at least one of these queues."""
        return [one for one in self.entries if any(name in queues for name, _ in one[2])]


class Mover:
    """A mover of queues between stock Kombu's form and ours.

    Args:
        channel: a channel to the broker, with the bindings of the application's queues.
        is_dry_run: True to change nothing and only count the messages that would be moved.
    """

    def __init__(self, channel: Channel, *, is_dry_run: bool) -> None:
        self.channel = channel
        self.queue: ReliableQueue = channel.queue
        self.inspector = QueueInspector(channel.queue)
        self.is_dry_run = is_dry_run
        self._redis: Any = channel.queue.client

    def names(self) -> list[str]:
        """Return the queues that hold messages in either form, sorted."""
        # A bound queue without messages may be one of fanout, which never holds any.
        bound = {name for name in self._bound() if self._steps(name)}
        return sorted(bound | set(self.inspector.names()))

    # ------------------------------------------------------------ from stock

    def _bound(self) -> set[str]:
        """Return the queues that any producer or worker has bound to an exchange."""
        found = set()
        prefix = self.channel.global_keyprefix + self.channel.keyprefix_queue % ""
        for key in self._redis.scan_iter(match=f"{literally(prefix)}*", count=1000):
            exchange = key.decode().removeprefix(prefix)
            found |= {queue for _, _, queue in self.channel.get_table(exchange)}
        return found

    def unacked(self) -> Unacked:
        """Return the messages that stock workers had taken and not acknowledged."""
        found = Unacked()
        taken = dict(self._redis.hscan_iter(self._unacked_key, count=BATCH))
        tags = [tag for tag in self._redis.zrange(self._index_key, 0, -1) if tag in taken]
        # A message that is missing in the index counts as the one taken longest ago.
        for tag in [*reversed(tags), *sorted(taken.keys() - set(tags))]:
            try:
                message, exchange, routing_key = json.loads(taken[tag])
                names = self.channel._lookup(exchange, routing_key)
                step = self.channel.priority(
                    self.channel._get_message_priority(message, reverse=False)
                )
                raw = redelivered(message)
            except (ValueError, KeyError, TypeError, AttributeError):
                found.left += 1
                continue
            if not names:
                found.left += 1
            else:
                found.entries.append((tag, raw, [(name, step) for name in names]))
        return found

    def from_stock(self, queues: Sequence[str], unacked: Unacked) -> list[Moved]:
        """Put back unacknowledged messages of stock workers, and adopt ETAs and sequences.

        Args:
            queues: the names of the queues.
            unacked: the result of `unacked`.

        Returns:
            The numbers for each queue, sorted by its name.

        Raises:
            OthersInterfere: another process takes messages that are being moved.
        """
        moved = {name: Moved(name) for name in queues}
        for some in _batches(unacked.of(queues)):
            arguments: list[Any] = []
            for tag, raw, places in some:
                arguments += (tag, raw, len(places))
                for name, step in places:
                    arguments += (name, step)
                    count = moved.setdefault(name, Moved(name))
                    count.unacked += 1
                    if self.is_dry_run:
                        self._count_wants(count, raw)
            if not self.is_dry_run:
                self._run(_restore_unacked, self._unacked_key, self._index_key, *arguments)
        for name, count in moved.items():
            self._adopt_lists(name, count)
        return [moved[name] for name in sorted(moved)]

    def _adopt_lists(self, name: str, count: Moved) -> None:
        for step in self._steps(name):
            self._join(name, step)
            has_wants = False
            for element in self.inspector.ready(name, step):
                has_wants |= self._count_wants(count, element)
            if has_wants and not self.is_dry_run:
                self._pass(name, step, _from_stock, (), self._wanted)
        if count.messages and not self.is_dry_run:
            self._run(_adopt, name, *self.inspector.ready_steps(name))

    @staticmethod
    def _count_wants(count: Moved, element: bytes) -> bool:
        wants = wants_of(element)
        count.messages += 1
        count.delayed += wants.wait_ms > 0
        count.sequenced += bool(wants.sequence)
        return bool(wants.sequence or wants.wait_ms)

    @staticmethod
    def _wanted(name: str, window: Sequence[bytes]) -> Iterator[list[Any]]:
        for element in window:
            yield [element, *wants_of(element)]

    # ------------------------------------------------------------ to stock

    def to_stock(self, queues: Sequence[str]) -> list[Moved]:
        """Turn all messages into stock Kombu's form, except dead letters and those they block.

        Args:
            queues: the names of the queues.

        Returns:
            The numbers for each queue, in the given order.

        Raises:
            OthersInterfere: another process takes messages that are being moved.
        """
        found = []
        for name in queues:
            look = self.inspector.look(name, ())
            count = Moved(name, blocked=look.blocked, dead=look.dead)
            for step in self._steps(name):
                self._join(name, step)
                if self.is_dry_run:
                    for element in self.inspector.ready(name, step):
                        self._count_ready(count, element)
                else:
                    self._pass(name, step, _to_stock, ("ready",), self._in_stock_form, count)
            self._move_delayed(name, count)
            found.append(count)
        return found

    def _count_ready(self, count: Moved, element: bytes) -> None:
        length = 1
        if element.startswith(b"="):
            length = self._length(count.queue, element[1:])
            count.sequenced += length
        count.messages += length

    def _length(self, name: str, sequence: bytes) -> int:
        key = self.queue.key(f"seq:{name}\x1f").encode() + sequence
        return int(self._redis.llen(key))

    def _in_stock_form(self, name: str, window: Sequence[bytes]) -> Iterator[list[Any]]:
        places: list[Place] = []
        for element in window:
            if element.startswith(b"="):
                ids = self.inspector.sequence(name, element[1:])
                places += [Place(element, message_id) for message_id in ids or [b""]]
                if len(ids) == BATCH:
                    # The sequence may have more messages, which must come before later elements.
                    break
            else:
                places.append(Place(element, element if element.isdigit() else b""))
        return self._rewritten(name, places)

    def _rewritten(self, name: str, places: Sequence[Place]) -> Iterator[list[Any]]:
        stored = self.inspector.read_all([place.id or b"0" for place in places])
        for (where, message_id, due_ms), message in zip(places, stored, strict=True):
            if not message_id:
                # A stock message, or the token of an empty sequence.
                is_token = where.startswith(b"=")
                yield [where, b"", "x" if is_token else "m", where]
            elif message is None:
                yield [where, message_id, "x", b""]
            else:
                try:
                    text = stock_message(*message, queue=name, due_ms=due_ms)
                    yield [where, message_id, "m", text]
                except ValueError as error:
                    why = {"reason": "unreadable envelope", "error": str(error)}
                    yield [where, message_id, "d", json.dumps(why)]

    def _move_delayed(self, name: str, count: Moved) -> None:
        for step, same_step in groupby(self._delayed(name), key=lambda pair: pair[0]):
            for some in _batches([place for _, place in same_step]):
                count.delayed += len(some)
                if self.is_dry_run:
                    count.messages += len(some)
                    continue
                rewritten = self._rewritten(name, some)
                while items := _fitting(rewritten):
                    done, _ = self._run(_to_stock, name, step, "delayed", *_flat(items))
                    _count_done(count, items[:done])
                    if done < len(items):
                        raise OthersInterfere(
                            f"other processes take from {name}: stop them, then repeat this"
                        )

    def _delayed(self, name: str) -> Iterator[tuple[bytes, Place]]:
        """Yield the delayed messages with their priority steps, in the order of their times."""
        key = self.queue.key(f"delayed:{name}")
        for member, due in self._redis.zrange(key, 0, -1, withscores=True):
            step, message_id, sequence = member.split(b"|", 2)
            ids = [message_id]
            if not message_id:
                ids = self.inspector.sequence(name, sequence, self._length(name, sequence) or 1)
            for one in ids:
                yield step, Place(member, one, int(due))

    # ------------------------------------------------------------ lists

    @property
    def _unacked_key(self) -> str:
        return f"{self.channel.global_keyprefix}{self.channel.unacked_key}"

    @property
    def _index_key(self) -> str:
        return f"{self.channel.global_keyprefix}{self.channel.unacked_index_key}"

    def _run(self, script: Any, *arguments: Any) -> Any:
        return script(self.queue.client, [self.queue.key("id")], [self.queue.prefix, *arguments])

    def _aside_key(self, name: str, step: int) -> str:
        return self.queue.key(f"aside:{name}\x1f{step}")

    def _steps(self, name: str) -> list[int]:
        """Return the priority steps that have ready messages, or messages set aside."""
        return [
            step
            for step in self.inspector.steps()
            if self._redis.exists(self.inspector.ready_key(name, step), self._aside_key(name, step))
        ]

    def _join(self, name: str, step: int) -> None:
        """Bring back messages that an unfinished move has set aside, before those not yet moved."""
        if not self.is_dry_run and self._redis.exists(self._aside_key(name, step)):
            self._pass(name, step, _from_stock, (), lambda _, window: ([e, "", 0] for e in window))

    def _pass(
        self,
        name: str,
        step: int,
        script: Any,
        options: Sequence[str],
        items_of: Callable[[str, Sequence[bytes]], Iterator[list[Any]]],
        count: Moved | None = None,
    ) -> None:
        """Process a ready list once, from its head to its tail."""
        patience, is_finished = PATIENCE, False
        while not is_finished:
            window = _window(self.inspector.ready(name, step))
            items = _fitting(items_of(name, window))
            done, is_finished = self._run(script, name, step, *options, *_flat(items))
            if count is not None:
                _count_done(count, items[:done])
            patience = PATIENCE if done else patience - 1
            if not patience:
                raise OthersInterfere(
                    f"other processes keep taking from {name}: stop them, then repeat this"
                )


def _count_done(count: Moved, items: Sequence[Sequence[Any]]) -> None:
    for place, message_id, what, _ in items:
        count.messages += what == "m"
        count.sequenced += what == "m" and place.startswith(b"=")
        count.expired += what == "x" and bool(message_id)
        count.dead += what == "d"


def _batches(items: Sequence[Any]) -> Iterator[list[Any]]:
    iterator = iter(items)
    while some := list(islice(iterator, BATCH)):
        yield some


def _window(elements: Iterator[bytes]) -> list[bytes]:
    """Return the next elements, up to `BATCH` and about `MOST_BYTES`."""
    found, size = [], 0
    for element in islice(elements, BATCH):
        found.append(element)
        size += len(element)
        if size >= MOST_BYTES:
            break
    return found


def _fitting(items: Iterator[list[Any]]) -> list[list[Any]]:
    """Return the next items, at least one, up to about `MOST_BYTES`."""
    found, size = [], 0
    for item in items:
        found.append(item)
        size += len(item[-1]) if isinstance(item[-1], (bytes, str)) else len(item[0])
        if size >= MOST_BYTES:
            break
    return found


def _flat(items: Sequence[Sequence[Any]]) -> list[Any]:
    return [value for item in items for value in item]
