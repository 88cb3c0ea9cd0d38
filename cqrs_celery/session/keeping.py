"""Keep the states that events have made of an aggregate, in the cache and in snapshots.

After a commit, the state that is kept is the one that was loaded plus the events that were
recorded. The caller's instance is not kept, since it may hold changes that no event has made.
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

#: The most events that a load reads again to check that its stream has the events of a kept state.
#: If a commit has more, the state is rebuilt right after it.
KNOWN_MOST: Final = 10


class Keeper:
    """The cache and the snapshots of a repository, as a save sees them.

    Args:
        replayer: makes states from events.
        snapshots: of the aggregates that have a snapshot policy; None for no snapshots.
        cache: the cache of aggregates; None for none.
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
        """Take a snapshot if one is due, and cache the state that the events have made.

        Args:
            aggregate: the caller's instance, just saved; its other changes are not kept.
            stream: the aggregate's stream.
            recorded: the events that were saved.
            since: the aggregate's version before the save.
        """
        ledger = aggregate.__ledger__
        if self._cache is None and aggregate.__snapshot_policy__ is None:
            # Neither the cache nor a snapshot keeps this aggregate, so this is never read.
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
        """Remove aggregates that could not be saved from the cache.

        A snapshot that is ahead of its events, as after restoring a backup, is deleted too:
        otherwise each load would begin with it, and each save would fail.
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
    """Return whether a load would have to read too many known events again."""
    return bool(known) and known[-1][0] - known[0][0] > KNOWN_MOST
