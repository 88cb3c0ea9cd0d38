"""The messages of sequences that wait behind the delivered one of their sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain

from ...queue.values import Taken

#: A queue's name and a sequence's: what names a sequence among those of all queues.
SequenceKey = tuple[str, str]


class SequenceRuns:
    """The runs that a consumer holds, each of one sequence and in its order.

    A run begins behind the sequence's first message, which is delivered or about to be. It may be
    empty. The caller holds a lock.

    Args:
        ready: the messages to deliver; those whose turn comes are put at its end.
    """

    def __init__(self, ready: deque[Taken]) -> None:
        self._ready = ready
        self._runs: dict[SequenceKey, deque[Taken]] = {}

    def __bool__(self) -> bool:
        return bool(self._runs)

    def __iter__(self) -> Iterator[Taken]:
        return chain(*self._runs.values())

    def take(self, taken: Iterable[Taken]) -> None:
        """Keep what an exchange has brought.

        Ready is what has no sequence, and the first message of each sequence.

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
        """Move what stands behind a message, as long as it fits, to the end of a list.

        Args:
            taken: the message.
            fits: returns whether another one may go along.
            most: how long the list may become.
            found: the list.
        """
        run = self._runs.get((taken.queue, taken.sequence)) if taken.sequence else None
        while run and len(found) < most and fits(run[0]):
            found.append(run.popleft())

    def advance_past(self, revoked: Collection[int], key: SequenceKey) -> None:
        """Make the next message of a sequence ready, but for those that the queue has taken back.

        Args:
            revoked: the ids of what was taken back.
            key: the sequence.
        """
        run = self._runs.get(key)
        while run and run[0].id in revoked:
            run.popleft()
        self.advance(key)

    def drop_of_take(self, key: SequenceKey, take: int) -> None:
        """Forget a run if all of it came by one take: the sequence may have been taken again."""
        run = self._runs.get(key)
        if run is not None and all(behind.take == take for behind in run):
            del self._runs[key]

    def forget(self, key: SequenceKey) -> None:
        """Forget a run, since the queue takes it back with what is ahead of it."""
        self._runs.pop(key, None)

    def remove(self, queues: Collection[str] | None = None) -> list[Taken]:
        """Forget all runs, or those of some queues; returns the first message of each.

        Args:
            queues: the names of the queues; None for all.
        """
        keys = [key for key in self._runs if queues is None or key[0] in queues]
        return [run[0] for run in [self._runs.pop(key) for key in keys] if run]

    def clear(self) -> None:
        """Forget all runs."""
        self._runs.clear()
