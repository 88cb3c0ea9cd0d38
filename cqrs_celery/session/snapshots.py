"""Take snapshots after commits, and begin loads from them.

A snapshot only saves time; the events are the truth. If anything goes wrong with a snapshot, that
is logged, the events are replayed, and the command goes on. A snapshot holds only committed events,
and is taken after the commit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from cachetools import TTLCache

from ..domain.aggregate import Aggregate
from ..domain.snapshot_policy import SnapshotFacts
from ..domain.state import capture, restore
from ..errors import SnapshotError
from ..messages.compression import Compression, compress, decompress
from ..messages.metadata import utc_now
from ..store.capabilities import capabilities_of_snapshots
from ..store.events import StoredEvent
from ..store.ports import SnapshotStore
from ..store.snapshot import Snapshot
from ..store.stream import StreamName

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)

#: Requests a later snapshot, taken elsewhere, of a stream at this version or a later one.
Defer = Callable[[StreamName, int], None]

#: Seconds for which this process does not request the same deferred snapshot again.
ASKED_S = 60.0

#: The most bytes of a state, before it is compressed: 256 MiB.
MOST_STATE_BYTES = 256 * 1024 * 1024

#: The most streams whose requests are remembered.
ASKED_STREAMS = 10_000


@dataclass(frozen=True, slots=True)
class Restored(Generic[A]):
    """The beginning of a load.

    Attributes:
        aggregate: restored from its snapshot; None if no snapshot fits.
        newer: the events after the snapshot, or all events without one; None if they have not been
            read yet.
    """

    aggregate: A | None = None
    newer: Sequence[StoredEvent] | None = None


class Snapshots:
    """Restores, takes and deletes the snapshots of a repository.

    Args:
        store: the snapshot store.
        defer: requests a snapshot from elsewhere, so that the committer does not wait; None to take
            it in this process.
        compression: of large states; None for none. Compressed states are read in any case.
        clock: returns the time, UTC.
    """

    def __init__(
        self,
        store: SnapshotStore,
        *,
        defer: Defer | None = None,
        compression: Compression | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self.store = store
        self._with_newer = capabilities_of_snapshots(store).with_newer
        self._defer = defer
        self._compression = compression
        self._clock = clock
        # Each commit finds a snapshot due until it has been taken.
        self._asked: TTLCache[StreamName, bool] = TTLCache(ASKED_STREAMS, ASKED_S)

    def restore(self, cls: type[A], stream: StreamName) -> Restored[A]:
        """Return an aggregate restored from its snapshot, and its newer events if read."""
        if cls.__snapshot_policy__ is None:
            return Restored()
        snapshot, newer = None, None
        try:
            snapshot, newer = self._read(stream, cls.__snapshot_version__)
            if snapshot is None:
                return Restored(newer=newer)
            data = bytes(decompress(snapshot.data, MOST_STATE_BYTES))
            aggregate = restore(cls, stream.aggregate_id, snapshot.version, data)
            if newer is None and not aggregate.__ledger__.known:
                raise SnapshotError(
                    f"the snapshot of {stream} does not name its last event, as it was taken by an"
                    " earlier version: whether it matches the events is unknown",
                    aggregate=str(stream),
                )
        except SnapshotError as error:
            _tell(logging.INFO, "snapshot of %s does not fit: %s", stream, error)
            return Restored()
        except Exception as error:  # noqa: BLE001  whatever it is, the events are there
            _tell(logging.WARNING, "snapshot of %s not restored: %s", stream, error)
            return Restored()
        ledger = aggregate.__ledger__
        ledger.snapshot_version = snapshot.version
        ledger.snapshot_taken_at = snapshot.taken_at
        ledger.made, ledger.made_version = data, snapshot.version
        return Restored(aggregate, newer)

    def _read(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent] | None]:
        """Return a snapshot of a schema version, and the newer events if the store can."""
        if self._with_newer is not None:
            return self._with_newer.find_with_newer(stream, schema_version)
        snapshot = self.store.find(stream)
        is_fitting = snapshot is not None and snapshot.schema_version == schema_version
        return (snapshot if is_fitting else None), None

    def after_commit(
        self,
        aggregate: Aggregate,
        stream: StreamName,
        *,
        load: Callable[[], Aggregate],
        confirm: Callable[[], bool],
    ) -> None:
        """Take a snapshot of an aggregate that was just committed, if its policy asks for one.

        Args:
            aggregate: the instance that was committed.
            stream: the aggregate's stream.
            load: returns the aggregate as its events alone have made it. The snapshot is taken of
                that, since the instance may hold changes that no event has made.
            confirm: returns whether the stream has the events that the aggregate was made of;
                called before `load`.
        """
        try:
            if not self.is_due(aggregate):
                return
            if self._defer is None:
                if confirm():
                    made = load()
                    self.take(made, stream)
                    taken = made.__ledger__
                    self._note(aggregate, taken.snapshot_version, taken.snapshot_taken_at)
                else:
                    logger.warning(
                        "snapshot of %s not taken: the store may have lost events that it is of",
                        stream,
                        extra={"stream": str(stream)},
                    )
                return
            if self._asked.get(stream) is None:
                self._defer(stream, aggregate.version)
                self._asked[stream] = True
            self._note(aggregate, aggregate.version, self._clock())
        except Exception as error:  # noqa: BLE001  the command has committed, it may not fail now
            _tell(logging.WARNING, "snapshot of %s not taken: %s", stream, error)

    def is_due(self, aggregate: Aggregate) -> bool:
        """Return whether an aggregate's policy asks for a snapshot; False without a policy."""
        policy = aggregate.__snapshot_policy__
        if policy is None:
            return False
        ledger = aggregate.__ledger__
        age_s = (
            None
            if ledger.snapshot_taken_at is None
            else (self._clock() - ledger.snapshot_taken_at).total_seconds()
        )
        facts = SnapshotFacts(ledger.version, ledger.snapshot_version, age_s, ledger.load_s)
        return policy.is_due(facts)

    def take(self, aggregate: Aggregate, stream: StreamName) -> bool:
        """Take a snapshot of an aggregate that has nothing pending; return whether it was kept.

        It is not kept if the store has a newer one.

        Raises:
            SnapshotError: the state is too large, or would not be restored the same.
            RegistrationError: the class's state can't be saved at all.
            StoreUnavailable: the store's server does not answer.
        """
        taken_at, state = self._clock(), capture(aggregate)
        if len(state) > MOST_STATE_BYTES:
            raise SnapshotError(
                f"the state of {stream} at version {aggregate.version} has {len(state):,} bytes;"
                f" accepted: up to {MOST_STATE_BYTES:,}. Split the aggregate, or keep less in it.",
                aggregate=str(stream),
            )
        snapshot = Snapshot(
            stream,
            aggregate.version,
            aggregate.__snapshot_version__,
            taken_at,
            compress(state, self._compression),
        )
        is_kept = self.store.put(snapshot)
        self._note(aggregate, snapshot.version, taken_at)
        logger.debug(
            "snapshot of %s taken at version %d",
            stream,
            snapshot.version,
            extra={"stream": str(stream), "version": snapshot.version, "is_kept": is_kept},
        )
        return is_kept

    def forget(self, stream: StreamName, why: Exception) -> None:
        """Delete a snapshot that does not match its stream's events."""
        _tell(logging.WARNING, "snapshot of %s does not match its events, removed: %s", stream, why)
        try:
            self.store.remove(stream)
        except Exception as error:  # noqa: BLE001  the events are there
            _tell(logging.WARNING, "snapshot of %s not removed: %s", stream, error)

    def _note(self, aggregate: Aggregate, version: int, taken_at: datetime | None) -> None:
        ledger = aggregate.__ledger__
        ledger.snapshot_version = version
        ledger.snapshot_taken_at = taken_at


def _tell(level: int, text: str, stream: StreamName, error: Exception) -> None:
    why = f"{type(error).__name__}: {error}"
    logger.log(level, text, stream, why, extra={"stream": str(stream), "why": why})
