"""Keep what events have made of an aggregate: in the cache, and in snapshots.

After a commit it is not the caller's instance that is kept, which may hold what no event has made,
but the state that was loaded and the events that were recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from ..domain.aggregate import Aggregate, PendingEvent
from ..errors import ConcurrencyError
from ..store.events import KnownEvent
from ..store.stream import StreamName
from .cache import AggregateCache
from .replaying import Replayer
from .snapshots import Snapshots

A = TypeVar("A", bound=Aggregate)

#: Events, at most, that a load reads again to see whether its stream has what was kept of it. If a
#: commit has more, that is seen to right behind it.
KNOWN_MOST: Final = 10


class Keeper:
    """The cache and the snapshots of a repository, as a save sees them.

    Args:
        replayer: makes states of events.
        snapshots: of aggregates that have them; None for none.
        cache: of aggregates; None for none.
    """

    def __init__(
        self, replayer: Replayer, snapshots: Snapshots | None, cache: AggregateCache | None
    ) -> None:
        self._replayer = replayer
        self._snapshots = snapshots
        self._cache = cache

    def keep(
        self, aggregate: A, stream: StreamName, recorded: Sequence[PendingEvent], *, since: int
    ) -> None:
        """Take a snapshot, and cache, what an aggregate's events have made.

        Args:
            aggregate: the caller's instance, just saved; what else it holds reaches nobody.
            stream: its events'.
            recorded: what was saved of it.
            since: its version before that.
        """
        ledger = aggregate.__ledger__
        if self._cache is None and aggregate.__snapshot_policy__ is None:
            # Nobody keeps it, so nobody will ask.
            ledger.known = []
        if self._cache is not None and is_long(ledger.known):
            self._replayer.confirm(aggregate, stream)
        made = None if self._cache is None else self._replayer.made(aggregate, recorded, since)

        def load() -> Aggregate:
            found = made or self._replayer.made(aggregate, recorded, since)
            if found is None:
                return self._replayer.read_again(aggregate, stream)
            found.__ledger__.known = ledger.known
            return found

        if self._snapshots is not None:
            self._snapshots.after_commit(
                aggregate,
                stream,
                load=load,
                confirm=partial(self._replayer.confirm, aggregate, stream),
            )
        if self._cache is not None and made is not None:
            now = made.__ledger__
            now.known = ledger.known
            now.snapshot_version = ledger.snapshot_version
            now.snapshot_taken_at = ledger.snapshot_taken_at
            self._cache.put(made, stream)
            ledger.made, ledger.made_version = now.made, now.made_version

    def forget(self, changed: Mapping[StreamName, Aggregate], error: BaseException) -> None:
        """Forget what is cached of aggregates that could not be saved.

        So is a snapshot that is ahead of its events, as after these came back from a backup: each
        load would begin with it, and each save fail.
        """
        if self._cache is not None:
            for stream in changed:
                self._cache.remove(stream)
        if isinstance(error, ConcurrencyError) and error.found < error.expected:
            for stream, aggregate in changed.items():
                is_meant = str(stream) == error.stream
                if is_meant and self._snapshots is not None and aggregate.__snapshot_policy__:
                    self._snapshots.forget(stream, error)


def is_long(known: Sequence[KnownEvent]) -> bool:
    """Return whether a load would have too much to read again."""
    return bool(known) and known[-1][0] - known[0][0] > KNOWN_MOST
