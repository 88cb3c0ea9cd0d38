"""Give back what consumers hold that have ended, in slices, so that no script blocks the server.

A consumer that ends passes what it holds to a remainder, in one step (end_consumers.lua). From then
on nothing that it settles counts. The remainder's messages are read and sorted here, and given back
in slices, each message in one step with its count of deliveries (recover.lua). The remainder is
itself a consumer, whose lease nobody renews: if the recovery is broken off, somebody else finds
that it has ended, and goes on.

Of what a lost consumer held, only what may have been running counts a delivery: of a sequence, the
first in flight, and of a consumer that runs `slots` messages at once, only what is surely among its
oldest `slots` deliveries. Nothing that leaves in order counts any.
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

#: The most messages given back in one script, but for a sequence of which more are held.
SLICE = 500

#: The most consumers ended in one script.
ENDED_AT_ONCE = 10

#: Keys read in one command.
READ_AT_ONCE = 500

#: Milliseconds after which a recovery that was broken off may be taken over.
REMAINDER_LEASE_MS = 30_000

#: Every message of a remainder counts a delivery.
ALL = "*"

_WHY = '{"reason":"delivered too often: its worker was lost each time"}'

_end_consumers = load("end_consumers")
_charge = load("charge")
_recover = load("recover")


class Remainder(NamedTuple):
    """What an ended consumer held.

    Attributes:
        consumer: whose it was.
        name: under which it is held now; empty where it held nothing.
        about: what the consumer has said of itself.
    """

    consumer: str
    name: str
    about: Mapping[str, Any]


@dataclass(slots=True)
class Unit:
    """What can be running by itself: a plain message, or what is held of a sequence.

    Attributes:
        remainder: the name of what it is held by.
        queue: its queue.
        sequence: empty for a plain message.
        fences: its messages' ids, each with the number of its delivery.
        first: the id of the message that stands first.
        may_have_run: whether it counts a delivery.
    """

    remainder: str
    queue: bytes
    sequence: bytes
    fences: dict[int, int]
    first: int
    may_have_run: bool = False

    @property
    def fence(self) -> int:
        """The number of the delivery of its first message; 0 if that is not held."""
        return self.fences.get(self.first, 0)


@dataclass(slots=True)
class _Delivery:
    """What a consumer runs in one of its slots: a unit alone, or the batches of a queue."""

    fence: int
    units: list[Unit]
    size: int = 1
    count: int = field(default=1)

    @property
    def slots(self) -> int:
        """How many deliveries it amounts to."""
        return math.ceil(self.count / self.size)


def end_and_recover(
    queue: VirtualHost,
    ended: Iterable[tuple[str, float | None]],
    *,
    most_tries: int = 0,
    is_leaving: bool = False,
) -> list[Recovered]:
    """End consumers, and give back everything that they hold.

    Args:
        queue: where they are consumers.
        ended: their names, each with the end of its lease as it was seen, in ms of Redis's clock;
            one that was renewed since is left alone. None for whatever it is.
        most_tries: a message delivered that often without a settlement becomes a dead letter;
            0 for no limit.
        is_leaving: True if they leave in order, so that nothing counts a delivery.

    Returns:
        What was recovered from whom, in the order of `ended`.

    Raises:
        redis.RedisError: as the driver raised it. What is not given back yet is found by whoever
            recovers what has ended when the lease of the remainder has.
    """
    # All of them first, so that what one gives back wakes none of the others.
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
    """Return what a remainder holds, as what can be running by itself."""
    client: Any = queue.client
    found: dict[tuple[bytes, bytes, int], Unit] = {}
    key = queue.key(f"flight:{remainder.name}")
    # The same one may come twice.
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
    # The list, not the numbers, says which one stands first.
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

    Sequences come first, since plain messages find their place among others alone.
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
    """Mark the units that count a delivery, and note which, if one slice does not hold all."""
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
    """Return the first messages of units that a batch may hold and that were delivered before."""
    batches = _batches_of(about)
    ids = [unit.first for unit in units if batches.get(unit.queue, 1) > 1]
    found: set[int] = set()
    client: Any = queue.client
    for some in _parts(ids, READ_AT_ONCE):
        tries = client.hmget(queue.key("tries"), some)
        found.update(one for one, count in zip(some, tries, strict=True) if count is not None)
    return found


def mark(units: Sequence[Unit], about: Mapping[str, Any], *, tried: set[int]) -> None:
    """Mark what may have been running: what surely was among the oldest `slots` deliveries.

    What was never delivered before goes into a batch with others of its queue, and they are running
    together or not at all. Behind another one of its sequence (an odd fence) a message is delivered
    at a time that is not known here, so only where everything fits is it surely among them.

    Args:
        units: all that a consumer held.
        about: what it has said of itself.
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
