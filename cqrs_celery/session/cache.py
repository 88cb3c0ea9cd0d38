"""Cache what was loaded or saved for a while, so that the next load reads only newer events.

An aggregate's state is cached as bytes, in the form of a snapshot. So each caller gets its own
instance, and no caller sees what another does with it. After a commit, the cache keeps the state
that was loaded plus the events that were recorded, since the caller's instance may hold changes
that no event has made. A cached state may be old: a load applies the events that have come since.
The state names the events that it was made of, and a load checks whether the stream has them. If
the cache fails, the failure is logged, and the aggregate is loaded as if nothing had been cached.
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
    """A cached state, and what a snapshot policy would otherwise have to ask the store for."""

    version: int
    schema_version: int
    state: bytes
    snapshot_version: int
    snapshot_taken_at: datetime | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Entry).decode


class TieredCache:
    """A StateCache in several tiers, the nearest first: memory in front of Redis.

    A tier that does not answer is skipped, with a warning in the log.

    Args:
        tiers: the caches, nearest first; without any, nothing is cached.
    """

    def __init__(self, *tiers: StateCache) -> None:
        self._tiers = tiers

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state from the nearest tier that has it; nearer tiers get a copy."""
        for index, tier in enumerate(self._tiers):
            state = self._try(lambda tier=tier: tier.get(stream), stream)  # type: ignore[misc]
            if state is not None:
                self._put(self._tiers[:index], stream, state)
                return state
        return None

    def put(self, stream: StreamName, state: bytes) -> None:
        """Put a stream's state into all tiers."""
        self._put(self._tiers, stream, state)

    def remove(self, stream: StreamName) -> None:
        """Remove a stream's state from all tiers."""
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
                "cache skipped for %s: %s",
                stream,
                error,
                extra={"stream": str(stream), "why": str(error)},
            )
            return None


class AggregateCache:
    """The cached aggregates, as a repository sees them.

    Args:
        states: stores the states, as bytes.
    """

    def __init__(self, states: StateCache) -> None:
        self._states = states
        self._told: set[type[Aggregate]] = set()

    def get(self, cls: type[A], stream: StreamName) -> A | None:
        """Return a new instance at the version that was cached; None if none was cached.

        A state that no longer fits the class counts as not cached.
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
        """Cache an aggregate in the state that its events have made.

        It is not cached if it has no events or no id, or if it is not known which events it was
        made of.

        Args:
            aggregate: as it was loaded, before anybody else had it; it has nothing pending.
            stream: the aggregate's stream.
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
        """Remove an aggregate from the cache."""
        try:
            self._states.remove(stream)
        except Exception as error:  # noqa: BLE001  what is left is brought forward
            _warn("state of %s not removed from the cache: %s", stream, error)

    def _tell_once(self, cls: type[Aggregate], stream: StreamName, error: CQRSError) -> None:
        """Log that a class can't be cached, but only once, since it happens at every load."""
        if cls not in self._told:
            self._told.add(cls)
            _warn("%s can't be cached, nor can others of its class: %s", stream, error)


def _warn(text: str, stream: StreamName, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    logger.warning(text, stream, why, extra={"stream": str(stream), "why": why})
