"""How many messages to take at once for tasks that take many.

A queue's declaration says how many a task of it takes at most. Not all that is taken fits together:
what was delivered before is handled alone, and other tasks may have the same queue. So the number
is halved when messages had to be given back, and doubled, up to the declared one, when a delivery
was full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ...queue.reliable_queue import MOST_IN_BATCHES


class BatchSizes:
    """The present batch size of each queue that has batches."""

    def __init__(self) -> None:
        self._declared: dict[str, int] = {}
        self._present: dict[str, int] = {}
        #: each queue's size as it was declared, and as it is now
        self.declared: Mapping[str, int] = MappingProxyType(self._declared)
        self.present: Mapping[str, int] = MappingProxyType(self._present)

    def declare(self, queue: str, size: int) -> None:
        """Note how many messages a task of a queue takes at most; 1 is no batch."""
        if size > 1:
            self._declared[queue] = self._present[queue] = min(size, MOST_IN_BATCHES)

    def note_delivered(self, queue: str, messages: int) -> None:
        """Learn how many messages that may go together a delivery has held."""
        present = self._present.get(queue, 0)
        if 0 < present <= messages:
            self._present[queue] = min(2 * present, self._declared[queue])

    def note_returned(self, queues: Iterable[str]) -> None:
        """Learn that messages of these queues were taken, and did not fit."""
        for queue in self._present.keys() & set(queues):
            self._present[queue] = max(1, self._present[queue] // 2)
