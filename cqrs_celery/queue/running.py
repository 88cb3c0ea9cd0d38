"""Tell which messages a consumer is running, and which it has only prefetched.

No worker is asked. The answer follows from the order of delivery, by the rule by which recovery
(see recovery.py) finds what may have been running when a worker died. A message counts as running
if it may be among the consumer's oldest `slots` deliveries. A batch is one delivery. Of a sequence,
only the first message in flight can run.

Recovery must not charge a message wrongly, so it leaves out the doubtful ones. Here every slot that
can be in use counts as used, and two cases are decided differently. A message that was taken behind
another one of its sequence is delivered at an unknown time: it is placed by when it was taken. If a
queue has batches, the messages beyond one batch form the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple


class Held(NamedTuple):
    """A message that a consumer holds.

    Attributes:
        id: its id; ids grow in the order of publishing.
        fence: the number of its delivery; fences grow in the order of delivery.
        queue: the queue it came from.
        sequence: the sequence whose order it keeps; empty for none.
    """

    id: int
    fence: int
    queue: str
    sequence: bytes


def running(
    held: Sequence[Held],
    *,
    slots: int,
    batches: Mapping[str, int],
    firsts: Mapping[tuple[str, bytes], int],
    tried: Collection[int],
) -> set[int]:
    """Return the ids of the messages that a consumer is running.

    Args:
        held: what it holds, in any order.
        slots: how many deliveries it runs at once; 0 if unknown: then everything that can run
            counts.
        batches: the queues of which one delivery holds many messages, each with the most it holds.
        firsts: the id of the first message of each sequence, by queue and sequence. If it is
            missing or not held, the message that was taken first counts as the first.
        tried: the ids of messages that were delivered before; each is delivered alone, never in a
            batch.
    """
    alone: list[list[Held]] = []
    in_batches: defaultdict[str, list[list[Held]]] = defaultdict(list)
    for unit in _units(held, firsts):
        first = unit[0]
        if batches.get(first.queue, 1) > 1 and first.id not in tried:
            in_batches[first.queue].append(unit)
        else:
            alone.append(unit[:1])
    deliveries = alone + [
        batch
        for queue, units in in_batches.items()
        for batch in _batches(units, size=batches[queue])
    ]
    deliveries.sort(key=lambda delivery: delivery[0].fence)
    return {one.id for delivery in deliveries[: slots or None] for one in delivery}


def _units(held: Sequence[Held], firsts: Mapping[tuple[str, bytes], int]) -> Iterator[list[Held]]:
    """Yield each plain message alone, and the held messages of each sequence in its order."""
    sequences: defaultdict[tuple[str, bytes], list[Held]] = defaultdict(list)
    for one in held:
        if one.sequence:
            sequences[one.queue, one.sequence].append(one)
        else:
            yield [one]
    for name, members in sequences.items():
        first = firsts.get(name)
        yield sorted(members, key=lambda one: (one.id != first, one.fence))


def _batches(units: list[list[Held]], *, size: int) -> list[list[Held]]:
    """Return the batches of a queue's units, the oldest first.

    The messages of a sequence that no longer fit into a batch wait for the batch; they are left
    out.
    """
    found: list[list[Held]] = []
    for unit in sorted(units, key=lambda unit: unit[0].fence):
        if not found or len(found[-1]) >= size:
            found.append([])
        found[-1] += unit[: size - len(found[-1])]
    return found
