"""Choose how many messages to take at once for tasks that take many.

A queue's declaration names the most messages that one of its tasks takes. Not all messages that are
taken fit together: redelivered ones are handled alone, and other tasks may use the same queue. So
the number is halved if messages had to be given back. If a delivery was full, it is doubled, up to
the declared number.
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
        """Note the most messages that a queue's task takes; 1 means that it takes no batches."""
        if size > 1:
            self._declared[queue] = self._present[queue] = min(size, MOST_IN_BATCHES)

    def note_delivered(self, queue: str, messages: int) -> None:
        """Note how many messages a delivery contained.

        Args:
            queue: the queue's name.
            messages: how many messages were merged.
        """
        present = self._present.get(queue, 0)
        if 0 < present <= messages:
            self._present[queue] = min(2 * present, self._declared[queue])

    def note_returned(self, queues: Iterable[str]) -> None:
        """Note that messages of these queues were taken, but did not fit, and were given back."""
        for queue in self._present.keys() & set(queues):
            self._present[queue] = max(1, self._present[queue] // 2)
