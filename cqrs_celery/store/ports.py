"""The ports of stores: of events, of snapshots, of cached states.

Any object with the methods of a port may be used as one. An event store declares what it can do in
addition by its property `capabilities` (see the module `capabilities`). The parts of that value are
typed by the further ports here and in `relay_ports`:

    class MyStore:
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(transactions=self)

A wrapper around a store forwards that value, and so keeps all that the store can do:

    class Logged:
        @property
        def capabilities(self) -> Capabilities:
            return capabilities_of(self.store)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from .events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    History,
    KnownEvent,
    Lease,
    StoredEvent,
    StreamAppend,
    Subscriber,
)
from .snapshot import Snapshot
from .stream import StreamName


class Subscriptions(Protocol):
    """The register of subscribers. A store that delivers within its append has one."""

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber, or replace it; it stays until it is unregistered.

        Returns:
            The number of topics that are new for this subscriber.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; messages already sent to it stay.

        Returns:
            The number of topics that it was removed from.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class EventStore(Protocol):
    """A store of events: atomic appends, and reads of one stream and of everything, in order.

    Each appended event is delivered to every subscriber; the engine ensures this. The store's
    `capabilities` declare how: by `subscriptions`, if it delivers within its append; by `relayed`,
    if a relay delivers; by `delivers`, if it has its own means. A store that declares no
    capabilities may have the methods and attributes themselves: `register` and `unregister`;
    `outbox` and `leadership`; `delivers = True`. A store that does not deliver at all is refused if
    there are subscribers.

    Positions increase in the order in which events may be read. In memory and in Redis they have no
    gaps; in a SQL database an append that was refused or rolled back may leave numbers out. No
    store returns an event while another event may still be committed before it.
    """

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams, all or none, each stream at its expected version.

        If the same events are appended again, as after a lost reply, it returns the first result.

        A store that declares `checks_versions` accepts appends without events beside those with
        events. Such a stream must be at its expected version, and nobody else may change it before
        this commit; nothing is written to it.

        Args:
            appends: one append for each stream.
            command: recorded with the events; the append is refused if it was recorded before.
            lease: the worker's lease on its message; the append is refused if the lease was lost.

        Returns:
            The position of the last event and the streams' versions.

        Raises:
            ConcurrencyError: a stream is at another version; nothing was written.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            StoreUnavailable: the server does not answer; the append may or may not have happened.
            ValueError: there are no appends, or none with events; one without events does not
                expect a version from 1; or two are for one stream.
            InvalidText: an id or a name has a NUL, or half of a surrogate pair.
        """

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return a stream's events in order.

        Args:
            stream: the stream to read.
            after_version: the version after which to begin; 0 for the first event.
            limit: the most events to return; None for all.

        Returns:
            Oldest first; empty if the stream is new or ends there.

        Raises:
            InvalidText: the stream's name has a NUL, or half of a surrogate pair.
            StoreUnavailable: the server does not answer.
        """

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the store's events in the order of their positions.

        Args:
            after_position: the position after which to begin; 0 for the first event.
            limit: the most events to return; None for all, however many. If the store is large,
                give a limit, and continue after the last position until a page is empty.

        Returns:
            Oldest first, with none left out; empty at the end. Reading stops before the first gap
            that an open transaction may still fill.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return the outcome that a command recorded when it committed; None if it did not commit.

        Raises:
            InvalidText: the id has a NUL, or half of a surrogate pair.
            StoreUnavailable: the server does not answer.
        """

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""


class StoreTransaction(Protocol):
    """An open transaction in a store's database, for rows of the application's own."""

    #: The database library's connection; code that uses it must not end the transaction.
    connection: Any

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events and commit them together with the rows, or roll back both.

        All appends may be without events, if the store declares `checks_versions`: then only the
        rows are committed, the streams' versions are checked, and the position is 0.

        Raises:
            CQRSError, ValueError: as `EventStore.append` does.
        """

    def commit(self, *, command: CommandRecord | None = None, lease: Lease | None = None) -> None:
        """Commit only the rows, with the command that wrote them, or roll them back.

        Raises:
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            StoreUnavailable: the server does not answer; the commit may or may not have happened.
        """

    def rollback(self) -> None:
        """Roll back what was not committed. Calling it again has no effect."""


class TransactionalStore(Protocol):
    """An event store in a database that holds other tables, too."""

    def begin(self) -> StoreTransaction:
        """Begin a transaction.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class EnclosingStore(TransactionalStore, Protocol):
    """A TransactionalStore whose transactions contain more than what goes through it.

    What a thread writes by other means, as Django's models do, belongs to them, too.

    Attributes:
        encloses_handlers: whether a handler that takes the session is called in a transaction.
        is_in_transaction: whether a transaction is open in this thread. What is read then may never
            be committed, so it is not cached.
    """

    encloses_handlers: bool

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open in this thread."""

    def begin(self, *, is_enclosing: bool = False) -> StoreTransaction:
        """Begin a transaction, or join the one that is open.

        Args:
            is_enclosing: whether a handler is called in it; then it can be rolled back by itself.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshotStore(Protocol):
    """A store of the newest snapshot of each stream. A lost or late snapshot only costs time.

    It declares what it can do in addition by a property `capabilities`, a `SnapshotCapabilities`.
    """

    def find(self, stream: StreamName) -> Snapshot | None:
        """Return a stream's snapshot; None if there is none.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def put(self, snapshot: Snapshot) -> bool:
        """Keep a snapshot in place of the stream's previous one, unless that is newer.

        A snapshot of another schema version is always replaced; of the same schema version, it is
        replaced unless it is of a later version of the stream. A store may refuse a snapshot of a
        stream that has no events.

        Returns:
            Whether the snapshot was kept.

        Raises:
            StoreUnavailable: the server does not answer; the snapshot may or may not be kept.
        """

    def remove(self, stream: StreamName) -> bool:
        """Delete a stream's snapshot; return whether there was one.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def streams(self, application: str, aggregate_type: str) -> Iterable[StreamName]:
        """Return the streams of an aggregate type that have snapshots, in any order.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshotsBesideEvents(SnapshotStore, Protocol):
    """A snapshot store that can read a snapshot and the events after it in one step."""

    def find_with_newer(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent]]:
        """Return a stream's snapshot and the events after it, in one round trip.

        Args:
            stream: the stream.
            schema_version: the accepted schema version; any other snapshot counts as none.

        Returns:
            The snapshot, and the events after its version, oldest first. Without a snapshot, None
            and all events.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class HistoryStore(Protocol):
    """An event store that can read just the columns a replay needs.

    An aggregate's events are read far more often than written, and a replay needs neither their
    ids nor their times nor their metadata. Without this, `read_stream` is used.
    """

    def read_history(
        self, stream: StreamName, *, known: Sequence[KnownEvent] = ()
    ) -> History | None:
        """Return the version, type, type's version and data of a stream's events.

        Args:
            stream: the stream to read.
            known: events that the reader already has, oldest first; the result begins after the
                last.

        Returns:
            A History; it is empty if the stream is new or ends there. None if the stream lacks one
            of the known events: then the reader's state is of another history than this.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshottingStore(Protocol):
    """An event store that keeps snapshots where its events are."""

    def snapshots(self) -> SnapshotStore:
        """Return the store of the snapshots of its streams."""


class StateCache(Protocol):
    """A cache of states, as bytes; an entry may disappear at any time."""

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state, or None if it is gone; the read restarts its time to live.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def put(self, stream: StreamName, state: bytes) -> None:
        """Keep a stream's state in place of its previous one.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def remove(self, stream: StreamName) -> None:
        """Remove a stream's state; do nothing if there is none.

        Raises:
            StoreUnavailable: the server does not answer.
        """
