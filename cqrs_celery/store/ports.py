"""The ports of stores: of events, of snapshots, of cached states.

Any object that has a port's methods may be used as one. What an event store can do in addition, it
declares by the value of its property `capabilities` (see `capabilities`), whose parts are typed by
the further ports here and in `relay_ports`:

    class MyStore:
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(transactions=self)

A wrapper around a store forwards that value, and loses nothing of what the store can do:

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
    """The register of who gets which events. A store that delivers within its append has one."""

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber, or replace it; it stays until it is unregistered.

        Returns:
            The number of topics that are new to it.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; what it was sent stays. Returns from how many.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class EventStore(Protocol):
    """A store of events: atomic appends, and reads of one stream and of everything, in order.

    An event that was appended is delivered to every subscriber; the engine sees to that. Among its
    `capabilities` the store declares how: by `subscriptions`, if it delivers within its append; by
    `relayed`, if a relay delivers; by `delivers`, if it has means of its own. A store that declares
    no capabilities at all may have the methods and attributes themselves: `register` and
    `unregister`; `outbox` and `leadership`; `delivers = True`. A store that delivers in no way is
    refused where there are subscribers.

    Positions increase in the order in which events may be read. In memory and in Redis they have no
    gaps; in a SQL database an append that was refused or rolled back may leave numbers out. No
    store gives an event before one that may still come in front of it.
    """

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams, all or none, each stream at its expected version.

        A repeated append of the same events (the first reply was lost) returns what the first did.

        Args:
            appends: one a stream; each stream once.
            command: recorded with the events, refused if it was recorded before.
            lease: the worker's hold on its message; refused if it was lost.

        Returns:
            The position of the last event and the streams' versions.

        Raises:
            ConcurrencyError: a stream is at another version; nothing was written.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            StoreUnavailable: the server does not answer; the append may or may not have happened.
            ValueError: there are no appends, one has no events, or a stream is there twice.
            InvalidText: an id or a name has a NUL, or half of a surrogate pair.
        """

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return a stream's events in order.

        Args:
            stream: whose events.
            after_version: the first one returned is the next version.
            limit: the most to return; None for all.

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
            after_position: the first one returned is the next event behind this position.
            limit: the most to return; None for all, however many: for a store that is large, give
                one, and go on behind the last position until a page is empty.

        Returns:
            Oldest first, and none left out; empty at the end, which is in front of the first event
            before which another one may still come.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return what a command recorded when it committed; None if it did not.

        Raises:
            InvalidText: the id has a NUL, or half of a surrogate pair.
            StoreUnavailable: the server does not answer.
        """

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""


class StoreTransaction(Protocol):
    """An open transaction in a store's database, for rows of the application's own."""

    #: The library's connection to the database; its user must not end the transaction.
    connection: Any

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events and commit them together with the rows, or roll back both.

        Raises as `EventStore.append` does.
        """

    def commit(self, *, command: CommandRecord | None = None, lease: Lease | None = None) -> None:
        """Commit the rows alone, with the command that they carry out, or roll them back.

        Raises:
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            StoreUnavailable: the server does not answer; the commit may or may not have happened.
        """

    def rollback(self) -> None:
        """Roll back what was not committed; a second call does nothing."""


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
        is_in_transaction: whether what this thread reads may never be committed; then it is not
            cached.
    """

    encloses_handlers: bool

    @property
    def is_in_transaction(self) -> bool:
        """Whether a transaction is open in this thread."""

    def begin(self, *, is_enclosing: bool = False) -> StoreTransaction:
        """Begin a transaction, or take part in the one that is open.

        Args:
            is_enclosing: whether a handler is called in it; then it can be rolled back by itself.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshotStore(Protocol):
    """A store of the newest snapshot of each stream. What it loses, or is late with, costs time.

    What it can do in addition, it declares by a property `capabilities`, a `SnapshotCapabilities`.
    """

    def find(self, stream: StreamName) -> Snapshot | None:
        """Return a stream's snapshot; None if there is none.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def put(self, snapshot: Snapshot) -> bool:
        """Keep a snapshot in place of the stream's last one, unless that is newer.

        One of another schema version is replaced whatever its version; of the same, unless it is of
        a later version. A store may refuse a snapshot of a stream that has no events.

        Returns:
            Whether it is kept.

        Raises:
            StoreUnavailable: the server does not answer; it may or may not be kept.
        """

    def remove(self, stream: StreamName) -> bool:
        """Delete a stream's snapshot; returns whether there was one.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def streams(self, application: str, aggregate_type: str) -> Iterable[StreamName]:
        """Return the streams of an aggregate type that have snapshots, in any order.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshotsBesideEvents(SnapshotStore, Protocol):
    """A snapshot store that can read a snapshot and the events behind it in one step."""

    def find_with_newer(
        self, stream: StreamName, schema_version: int
    ) -> tuple[Snapshot | None, Sequence[StoredEvent]]:
        """Return a stream's snapshot and the events behind it, in one round trip.

        Args:
            stream: whose.
            schema_version: of the snapshot; one of another version is none.

        Returns:
            The snapshot, and the events from its version on, oldest first; without a snapshot, None
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
            stream: whose events.
            known: events that the reader has already, oldest first; what is returned begins behind
                the last one.

        Returns:
            The events; without any, if the stream is new or ends there. None if the stream does not
            have every known event: then the reader knows another stream than this one.

        Raises:
            StoreUnavailable: the server does not answer.
        """


class SnapshottingStore(Protocol):
    """An event store that keeps snapshots where its events are."""

    def snapshots(self) -> SnapshotStore:
        """Return the store of the snapshots of its streams."""


class StateCache(Protocol):
    """A cache of states, as bytes; whatever is put there may be gone at any time."""

    def get(self, stream: StreamName) -> bytes | None:
        """Return a stream's state, or None if it is gone; its time to live begins anew.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def put(self, stream: StreamName, state: bytes) -> None:
        """Keep a stream's state in place of its last one.

        Raises:
            StoreUnavailable: the server does not answer.
        """

    def remove(self, stream: StreamName) -> None:
        """Forget a stream's state; without one, do nothing.

        Raises:
            StoreUnavailable: the server does not answer.
        """
