"""The ports of a store whose events a relay delivers: outbox, leadership, and the store itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from .events import Lease, Place, StoredEvent, Subscriber
from .stream import StreamName

#: Returns whether a worker still holds its message.
LeaseCheck = Callable[[Lease], bool]


class Pending(NamedTuple):
    """The number of events after a position, and the time when the oldest of them was recorded."""

    events: int
    oldest_at: datetime | None


class Led(NamedTuple):
    """The leader of an application's relays.

    Attributes:
        leader: host and process.
        broker_id: the id of the broker that it relays to; empty if the broker has none, or it is
            not known.
        broker: names the broker in messages, without credentials.
        until_ms: when the lease ends, in milliseconds of the database's clock.
        is_live: whether the lease has not ended yet.
    """

    leader: str
    broker_id: str
    broker: str
    until_ms: int
    is_live: bool


class Outbox(Protocol):
    """The events of a store in order, and the subscribers of each application.

    Every method raises StoreUnavailable if the server does not answer.
    """

    @property
    def store_id(self) -> str:
        """The id that distinguishes this store from all others."""

    def read_behind(self, place: Place, limit: int) -> Sequence[StoredEvent]:
        """Return the events after a place, in order, from the primary.

        Args:
            place: the place of the last event that was read.
            limit: the most events to return.

        Raises:
            StoreWentBack: the store has another event at that place, or none.
        """

    def has(self, place: Place) -> bool:
        """Return whether the store has the place's event at the place's position."""

    def place_before(self, position: int) -> Place:
        """Return the place of the last event before a position; `START` if there is none."""

    def last_position(self) -> int:
        """Return the position of the last event; 0 if there is none."""

    def pending(self, after_position: int) -> Pending:
        """Return the number of events after a position, and when the oldest was recorded."""

    def subscribers(self, application: str, broker_id: str = "") -> list[Subscriber]:
        """Return the subscribers of an application, and of applications that use the same broker.

        Args:
            application: the application.
            broker_id: the broker's id; empty for the application's own subscribers only.
        """

    def register(self, application: str, subscriber: Subscriber) -> None:
        """Register a subscriber of an application, or replace the one of its name."""

    def unregister(self, application: str, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; with its last topic, the subscriber itself is removed.

        Returns:
            The number of topics that it was removed from.
        """


class Leadership(Protocol):
    """A process's claim to be the active relay of an application; not safe for several threads.

    Every method raises StoreUnavailable if the server does not answer.

    Attributes:
        token: identifies the present claim; empty without a claim.
        broker_id: the id of the broker that is relayed to; empty if it has none.
        former_broker_id: the id of the broker before it, if its events must be sent again; else
            empty.
        is_first: whether no relay of this application has been active before.
        seen: the leader that `claim` found last; None if there has never been one.
    """

    token: str
    broker_id: str
    former_broker_id: str
    is_first: bool
    seen: Led | None

    def led(self) -> Led | None:
        """Return the present leader, or else the last; None if there has never been one."""

    def leader_of_another(self, broker_id: str) -> tuple[str, str] | None:
        """Return who relays to a broker for another application now.

        Args:
            broker_id: the id of the broker.

        Returns:
            The leader and that application; None if there is none now.
        """

    def claim(self, broker_id: str, next_number: Callable[[], int] = ...) -> bool:
        """Claim to be the active relay, if there is none; return whether this one is active now.

        Args:
            broker_id: the id of the broker that is relayed to; empty if it has none.
            next_number: returns a number above that of every earlier claim; without it, only the
                database can tell claims apart.
        """

    def holds(self) -> bool:
        """Return whether the claim still holds; the lease is renewed from time to time."""

    def release(self) -> None:
        """Give up the claim, so that another relay can lead at once.

        Calling it again has no effect.
        """

    def checkpoint(self) -> Place | None:
        """Return the place up to which all events are known to be handled, or sent.

        Returns:
            The place; None if no relay has ever run.
        """

    def checkpoints(self) -> list[Place]:
        """Return the checkpoints of this application and of those with its broker, lowest first."""

    def save_checkpoint(self, place: Place) -> bool:
        """Save the checkpoint if the claim holds and the store has the event at that place.

        Args:
            place: the place up to which all events are handled, or sent.

        Returns:
            Whether it was saved.
        """

    def note_new_broker_id(self) -> None:
        """Save the broker's new id for the applications that had its former one."""


class RelayedStore(Protocol):
    """An event store whose events a relay delivers: it has an outbox and a leadership.

    Attributes:
        on_commit: called after each commit with events, to wake the relay; the application sets it.
        lease_check: returns whether a lease is held; the application sets it if it is None.
    """

    on_commit: Callable[[], object] | None
    lease_check: LeaseCheck | None

    @property
    def where(self) -> str:
        """The database's name in errors, without credentials."""

    @property
    def outbox(self) -> Outbox:
        """The outbox that the relay reads."""

    def leadership(self, application: str, *, broker: str) -> Leadership:
        """Return this process's claim to relay an application's events.

        Args:
            application: the application.
            broker: names the broker in messages, without credentials.
        """

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Return a context in which this thread waits no longer than a limit for an answer.

        Args:
            limit_s: seconds; None for no limit. A store whose driver has its own limits may ignore
                it.
        """

    def forget_expired_commands(self) -> int:
        """Delete a batch of expired commands; return how many were deleted, 0 if none is left."""

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""


class ReplicatedStore(Protocol):
    """An event store that may read streams from a replica, which may lag behind."""

    def read_from_primary(self, *streams: StreamName) -> None:
        """Read these streams from the primary for a while, since a replica may lag behind."""

    def check_replica(self) -> None:
        """Check that the replica, if there is one, is a replica of the store's database.

        Raises:
            InvalidSetting: it is another database, or one without the store's tables.
            SchemaError: the tables of the store's own database are missing.
            StoreUnavailable: a server does not answer.
        """


class SqlTablesStore(RelayedStore, Protocol):
    """An event store in tables of a SQL database, which the CLI's schema commands maintain."""

    @property
    def engine(self) -> Any:
        """SQLAlchemy's engine."""
