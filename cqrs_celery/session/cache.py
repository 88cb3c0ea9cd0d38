"""Keep what was loaded or saved for a while, so that the next load reads newer events only.

An aggregate's state is kept as bytes, as a snapshot has it. So each caller gets an instance of its
own, and nobody else sees what one caller does with it. After a commit, the cache keeps the state
that was loaded and the events that were recorded; the caller's instance may hold what no event has
made. A kept state may be old: a load applies the events that have come since. It names the events
that it was made of, and a load checks whether the stream has them. If anything goes wrong with it,
that is logged, and the aggregate is loaded as if nothing had been kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from ..domain.aggregate import Aggregate
from ..domain.state import capture, restore
from ..errors import CQRSError, RegistrationError, SnapshotError
from ..store.ports import StateCache
from ..store.stream import StreamName

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)


class _Entry(msgspec.Struct, array_like=True):
    """What is kept: a state, and what a policy of snapshots would have to ask the store for."""

    version: int
    schema_version: int
    state: bytes
    snapshot_version: int
    snapshot_taken_at: datetime | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


class TieredCache:
    """A StateCache in several tiers, the nearest first: memory in front of Redis.

    One that does not answer is passed over, with a warning in the log.

    Args:
        tiers: the caches; none keep nothing.
    """

    def __init__(self, *tiers: StateCache) -> None:
        self._tiers = tiers

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state from the nearest that has it; those before it get it too."""
        for index, tier in enumerate(self._tiers):
            state = self._try(lambda tier=tier: tier.get(stream), stream)  # type: ignore[misc]
            if state is not None:
                self._put(self._tiers[:index], stream, state)
                return state
        return None

    def put(self, stream: StreamName, state: bytes) -> None:
        """Keep a stream's state in all of them."""
        self._put(self._tiers, stream, state)

    def remove(self, stream: StreamName) -> None:
        """Forget a stream's state in all of them."""
        for tier in self._tiers:
            self._try(lambda tier=tier: tier.remove(stream), stream)  # type: ignore[misc]

    def _put(self, tiers: Sequence[StateCache], stream: StreamName, state: bytes) -> None:
        for tier in tiers:
            self._try(lambda tier=tier: tier.put(stream, state), stream)  # type: ignore[misc]

    def _try(self, action: Callable[[], bytes | None], stream: StreamName) -> bytes | None:
        try:
            return action()
        except CQRSError as error:
            logger.warning(
                "cache passed over for %s: %s",
                stream,
                error,
                extra={"stream": str(stream), "why": str(error)},
            )
            return None


class AggregateCache:
    """The cached aggregates, as a repository knows them.

    Args:
        states: keeps the bytes.
    """

    def __init__(self, states: StateCache) -> None:
        self._states = states
        self._told: set[type[Aggregate]] = set()

    def get(self, cls: type[A], stream: StreamName) -> A | None:
        """Return an instance of the caller's own, at the version that was kept; None if none was.

        What does not fit the class any more is none.
        """
        if not stream.aggregate_id:
            return None
        try:
            kept = self._states.get(stream)
            if kept is None:
                return None
            entry = _decode(kept)
            if entry.schema_version != cls.__snapshot_version__:
                return None
            aggregate = restore(cls, stream.aggregate_id, entry.version, entry.state)
            if not aggregate.__ledger__.known:
                return None
        except SnapshotError:
            return None
        except Exception as error:  # noqa: BLE001  whatever it is, the events are there
            _warn("cached state of %s not restored: %s", stream, error)
            return None
        ledger = aggregate.__ledger__
        ledger.snapshot_version = entry.snapshot_version
        ledger.snapshot_taken_at = entry.snapshot_taken_at
        ledger.made, ledger.made_version = entry.state, entry.version
        return aggregate

    def put(self, aggregate: Aggregate, stream: StreamName) -> None:
        """Keep an aggregate as its events have made it; not one without events, or without an id.

        Nor one of which it is not known of which events it was made.

        Args:
            aggregate: as it was loaded, before anybody else had it; it has nothing pending.
            stream: its events'.
        """
        if not (stream.aggregate_id and aggregate.__ledger__.known):
            return
        ledger = aggregate.__ledger__
        try:
            state = capture(aggregate)
            ledger.made, ledger.made_version = state, ledger.version
            entry = _Entry(
                ledger.version,
                aggregate.__snapshot_version__,
                state,
                ledger.snapshot_version,
                ledger.snapshot_taken_at,
            )
            self._states.put(stream, _encode(entry))
        except (SnapshotError, RegistrationError) as error:
            self._tell_once(type(aggregate), stream, error)
            self.remove(stream)
        except Exception as error:  # noqa: BLE001  it has been loaded, or saved
            _warn("state of %s not cached: %s", stream, error)

    def remove(self, stream: StreamName) -> None:
        """Forget an aggregate."""
        try:
            self._states.remove(stream)
        except Exception as error:  # noqa: BLE001  what is left is brought forward
            _warn("state of %s not removed from the cache: %s", stream, error)

    def _tell_once(self, cls: type[Aggregate], stream: StreamName, error: CQRSError) -> None:
        """Log that a class can't be cached, the first time only: it happens at every load."""
        if cls not in self._told:
            self._told.add(cls)
            _warn("%s can't be cached, nor others of its class: %s", stream, error)


def _warn(text: str, stream: StreamName, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    logger.warning(text, stream, why, extra={"stream": str(stream), "why": why})
