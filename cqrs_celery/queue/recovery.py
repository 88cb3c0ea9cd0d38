"""Return the messages of ended consumers to their queues, in slices, so that no script runs long.

When a consumer ends, one step (end_consumers.lua) moves its messages to a remainder. From then on
its settlements are ignored. The remainder's messages are read and sorted here, and put back in
slices; each message and its count of deliveries change in one step (recover.lua). The remainder is
itself a consumer, whose lease nobody renews: if the recovery is interrupted, another consumer finds
that the lease has ended, and continues.

If a consumer was lost, a delivery counts only for messages that may have been running: of a
sequence, the first in flight; if the consumer runs `slots` messages at once, only those that are
certainly among its oldest `slots` deliveries. If a consumer leaves in order, no delivery counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from .scripts import load
from .values import Recovered
from .virtual_host import VirtualHost

#: The most messages put back by one script, except for a sequence of which more are held.
SLICE = 500

#: The most consumers ended by one script.
ENDED_AT_ONCE = 10

#: Keys read in one command.
READ_AT_ONCE = 500

#: Milliseconds after which another consumer may take over an interrupted recovery.
REMAINDER_LEASE_MS = 30_000

#: Every message of a remainder counts a delivery.
ALL = "*"

_WHY = '{"reason":"delivered too often: its worker was lost each time"}'

_end_consumers = load("end_consumers")
_charge = load("charge")
_recover = load("recover")


class Remainder(NamedTuple):
    """The messages of an ended consumer.

    Attributes:
        consumer: the ended consumer.
        name: the name under which the messages are held now; empty if there are none.
        about: what the consumer has said about itself.
    """

    consumer: str
    name: str
    about: Mapping[str, Any]


@dataclass(slots=True)
class Unit:
    """A plain message, or the held messages of one sequence: what can run independently.

    Attributes:
        remainder: the name of the remainder that holds it.
        queue: its queue.
        sequence: its sequence; empty for a plain message.
        fences: its messages' ids, each with the number of its delivery.
        first: the id of its first message.
        may_have_run: whether a delivery counts for it.
    """

    remainder: str
    queue: bytes
    sequence: bytes
    fences: dict[int, int]
    first: int
    may_have_run: bool = False

    @property
    def fence(self) -> int:
        """The number of its first message's delivery; 0 if that message is not held."""
        return self.fences.get(self.first, 0)


@dataclass(slots=True)
class _Delivery:
    """The contents of a consumer's slots: a unit alone, or the batches of a queue."""

    fence: int
    units: list[Unit]
    size: int = 1
    count: int = field(default=1)

    @property
    def slots(self) -> int:
        """How many deliveries it counts as."""
        return math.ceil(self.count / self.size)


def end_and_recover(
    queue: VirtualHost,
    ended: Iterable[tuple[str, float | None]],
    *,
    most_tries: int = 0,
    is_leaving: bool = False,
) -> list[Recovered]:
    """End consumers, and return all their messages to the queues.

    Args:
        queue: the queues that they consume.
        ended: their names, each with the end of its lease as it was seen, in milliseconds of
            Redis's clock. A consumer that has renewed its lease since is left alone. None ends the
            consumer whatever its lease is.
        most_tries: a message that was delivered this often without a settlement becomes a dead
            letter; 0 for no limit.
        is_leaving: True if the consumers leave in order, so that no delivery counts.

    Returns:
        The outcome for each consumer, in the order of `ended`.

    Raises:
        redis.RedisError: as the driver raised it. Messages that were not put back yet are recovered
            when the remainder's lease has ended.
    """
    # All consumers end first, so that a message of one wakes none of the others.
    remainders = list(_end(queue, list(ended), is_leaving=is_leaving))
    units = [unit for one in remainders if one.name for unit in _units(queue, one)]
    _mark(queue, remainders, units)
    found = dict.fromkeys((one.name for one in remainders), (0, 0))
    for some in _slices(_in_order(units)):
        for name, messages, letters in _give_back(queue, some, most_tries):
            before = found[name]
            found[name] = before[0] + messages, before[1] + letters
    return [Recovered(one.consumer, *found[one.name]) for one in remainders]


def _end(
    queue: VirtualHost, ended: Sequence[tuple[str, float | None]], *, is_leaving: bool
) -> Iterator[Remainder]:
    for some in _parts(ended, ENDED_AT_ONCE):
        args: list[Any] = [queue.prefix, REMAINDER_LEASE_MS, int(is_leaving)]
        for name, seen in some:
            args += (name, "" if seen is None else int(seen))
        flat = _end_consumers(queue.client, queue.routing_keys, args)
        for consumer, name, about in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
            yield Remainder(consumer.decode(), name.decode(), _read_about(about))


def _read_about(text: bytes) -> Mapping[str, Any]:
    try:
        about = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return about if isinstance(about, dict) else {}


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


# ---------------------------------------------------------------- what is held


def _units(queue: VirtualHost, remainder: Remainder) -> list[Unit]:
    """Return a remainder's messages, grouped into what can run independently."""
    client: Any = queue.client
    found: dict[tuple[bytes, bytes, int], Unit] = {}
    key = queue.key(f"flight:{remainder.name}")
    # HSCAN may return an entry twice.
    for message_id, entry in client.hscan_iter(key, count=READ_AT_ONCE):
        fence, _, _, place = entry.split(b"|", 3)
        name, _, sequence = place.partition(b"\x1f")
        number = int(message_id)
        unit = found.setdefault(
            (name, sequence, 0 if sequence else number),
            Unit(remainder.name, name, sequence, {}, number),
        )
        unit.fences[number] = int(fence)
    units = list(found.values())
    _find_firsts(queue, [unit for unit in units if unit.sequence])
    return units


def _find_firsts(queue: VirtualHost, units: Sequence[Unit]) -> None:
    # The order of the list decides which message is first, not the ids.
    prefix = queue.key("seq:").encode()
    for some in _parts(units, READ_AT_ONCE):
        with queue.client.pipeline(transaction=False) as pipe:
            for unit in some:
                pipe.lindex(prefix + unit.queue + b"\x1f" + unit.sequence, -1)
            for unit, first in zip(some, pipe.execute(), strict=True):
                if first is not None:
                    unit.first = int(first)


def _in_order(units: Iterable[Unit]) -> list[Unit]:
    """Return units in the order in which they are put back at the head: the oldest last.

    Sequences come first, since a plain message finds its place only among other plain messages.
    """
    return sorted(units, key=lambda unit: (not unit.sequence, -unit.first))


def _slices(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    some: list[Unit] = []
    count = 0
    for unit in units:
        if some and count + len(unit.fences) > SLICE:
            yield some
            some, count = [], 0
        some.append(unit)
        count += len(unit.fences)
    if some:
        yield some


def _give_back(
    queue: VirtualHost, units: Iterable[Unit], most_tries: int
) -> Iterator[tuple[str, int, int]]:
    args: list[Any] = [queue.prefix, most_tries, _WHY]
    for unit in units:
        args += (unit.remainder, int(unit.may_have_run), len(unit.fences), *unit.fences)
    flat = _recover(queue.client, queue.routing_keys, args)
    for name, messages, letters in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
        yield name.decode(), int(messages), int(letters)


# ---------------------------------------------------------------- what counts a delivery


def _mark(queue: VirtualHost, remainders: Iterable[Remainder], units: Sequence[Unit]) -> None:
    """Mark the units that a delivery counts for; store the marks if one slice does not hold all."""
    is_whole = sum(len(unit.fences) for unit in units) <= SLICE
    for one in remainders:
        mine = [unit for unit in units if unit.remainder == one.name]
        if not mine:
            continue
        charged = one.about.get("charged")
        if charged is None:
            mark(mine, one.about, tried=_tried(queue, mine, one.about))
            if is_whole:
                continue
            marked = [str(unit.first) for unit in mine if unit.may_have_run]
            text = ALL if len(marked) == len(mine) else " ".join(marked)
            noted = _charge(queue.client, queue.routing_keys, [queue.prefix, one.name, text])
            charged = noted.decode() if isinstance(noted, bytes) else ""
        ids = set(str(charged).split())
        for unit in mine:
            unit.may_have_run = charged == ALL or str(unit.first) in ids


def _batches_of(about: Mapping[str, Any]) -> dict[bytes, int]:
    batches = about.get("batches")
    if not isinstance(batches, dict):
        return {}
    return {name.encode(): size for name, size in batches.items() if isinstance(size, int)}


def _tried(queue: VirtualHost, units: Iterable[Unit], about: Mapping[str, Any]) -> set[int]:
    """Return the first messages of units that may be in a batch and were delivered before."""
    batches = _batches_of(about)
    ids = [unit.first for unit in units if batches.get(unit.queue, 1) > 1]
    found: set[int] = set()
    client: Any = queue.client
    for some in _parts(ids, READ_AT_ONCE):
        tries = client.hmget(queue.key("tries"), some)
        found.update(one for one, count in zip(some, tries, strict=True) if count is not None)
    return found


def mark(units: Sequence[Unit], about: Mapping[str, Any], *, tried: set[int]) -> None:
    """Mark the units that may have been running: those surely among the oldest `slots` deliveries.

    A message that was never delivered before goes into a batch with others of its queue; they run
    together or not at all. A message behind another one of its sequence (an odd fence) is delivered
    at an unknown time. It is certainly among the oldest deliveries only if all deliveries fit.

    Args:
        units: all units that a consumer held.
        about: what it has said about itself.
        tried: the first messages of units that were delivered before.
    """
    slots = about.get("slots")
    slots = slots if isinstance(slots, int) else 0
    deliveries = _deliveries(units, _batches_of(about), tried)
    total = sum(delivery.slots for delivery in deliveries)
    before = 0
    for delivery in sorted(deliveries, key=lambda one: one.fence):
        is_sure = (delivery.fence % 2 == 0 and before < slots) or total <= slots
        for unit in delivery.units:
            unit.may_have_run = slots == 0 or is_sure
        before += delivery.slots


def _deliveries(
    units: Iterable[Unit], sizes: Mapping[bytes, int], tried: set[int]
) -> list[_Delivery]:
    alone: list[_Delivery] = []
    batches: dict[bytes, _Delivery] = {}
    for unit in units:
        size = sizes.get(unit.queue, 1)
        if size <= 1 or unit.first in tried:
            alone.append(_Delivery(unit.fence, [unit]))
            continue
        batch = batches.setdefault(unit.queue, _Delivery(unit.fence, [], size, 0))
        batch.fence = min(batch.fence, unit.fence)
        batch.count += len(unit.fences)
        batch.units.append(unit)
    return [*alone, *batches.values()]
