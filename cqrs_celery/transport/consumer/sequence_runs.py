"""The taken messages that wait behind the delivered message of their sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain

from ...queue.values import Taken

#: The names of a queue and a sequence: together they identify a sequence.
SequenceKey = tuple[str, str]


class SequenceRuns:
    """The runs that a consumer holds, each of one sequence and in its order.

    A run begins behind the sequence's first message, which is delivered or about to be. A run may
    be empty. The caller must hold a lock.

    Args:
        ready: the messages to deliver; a message whose turn comes is put at the end.
    """

    def __init__(self, ready: deque[Taken]) -> None:
        self._ready = ready
        self._runs: dict[SequenceKey, deque[Taken]] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Taken]:
        return chain(*self._runs.values())

    def take(self, taken: Iterable[Taken]) -> None:
        """Keep the messages of an exchange.

        Messages without a sequence, and the first message of each sequence, become ready.

        Args:
            taken: the messages, those of each sequence in its order.
        """
        begun: dict[SequenceKey, deque[Taken]] = {}
        for one in taken:
            key = one.queue, one.sequence
            if not one.sequence:
                self._ready.append(one)
            elif key in begun:
                begun[key].append(one)
            else:
                begun[key] = self._runs[key] = deque()
                self._ready.append(one)

    def advance(self, key: SequenceKey) -> None:
        """Make the next message of a sequence ready, now that the one before it is done."""
        run = self._runs.get(key)
        if run:
            self._ready.append(run.popleft())
        else:
            self._runs.pop(key, None)

    def move_behind(
        self, taken: Taken, fits: Callable[[Taken], bool], most: int, found: list[Taken]
    ) -> None:
        """Move the messages behind a message, as long as they fit, to the end of a list.

        Args:
            taken: the message.
            fits: returns whether another message fits.
            most: the greatest length of the list.
            found: the list.
        """
        run = self._runs.get((taken.queue, taken.sequence)) if taken.sequence else None
        while run and len(found) < most and fits(run[0]):
            found.append(run.popleft())

    def advance_past(self, revoked: Collection[int], key: SequenceKey) -> None:
        """Make the next message of a sequence ready that the queue has not taken back.

        Args:
            revoked: the ids of the messages that were taken back.
            key: the sequence.
        """
        run = self._runs.get(key)
        while run and run[0].id in revoked:
            run.popleft()
        self.advance(key)

    def drop_of_take(self, key: SequenceKey, take: int) -> None:
        """Forget a run if all of it came by one take: the sequence may have been taken again.

        Args:
            key: the sequence.
            take: the number of the take.
        """
        run = self._runs.get(key)
        if run is not None and all(behind.take == take for behind in run):
            del self._runs[key]

    def forget(self, key: SequenceKey) -> None:
        """Forget a run, since the queue takes it back with the message in front of it."""
        self._runs.pop(key, None)

    def remove(self, queues: Collection[str] | None = None) -> list[Taken]:
        """Forget all runs, or those of some queues; return the first message of each.

        Args:
            queues: the names of the queues; None for all.
        """
        keys = [key for key in self._runs if queues is None or key[0] in queues]
        return [run[0] for run in [self._runs.pop(key) for key in keys] if run]

    def clear(self) -> None:
        """Forget all runs."""
        self._runs.clear()
