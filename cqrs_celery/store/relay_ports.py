"""The ports of a store whose events a relay delivers: outbox, leadership, and the store itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from .events import Lease, Place, StoredEvent, Subscriber
from .stream import StreamName

#: Tells whether a worker still holds its message.
LeaseCheck = Callable[[Lease], bool]


class Pending(NamedTuple):
    """How many events stand behind a position, and when the oldest of them was recorded."""

    events: int
    oldest_at: datetime | None


class Led(NamedTuple):
    """Who leads an application's relays.

    Attributes:
        leader: host and process.
        broker_id: the id of the broker that it relays to; empty if that has none, or none is known.
        broker: names it in messages, without credentials.
        until_ms: when the lease ends, in milliseconds of the database's clock.
        is_live: whether it has not ended yet.
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
        """What tells the store from all others."""

    def read_behind(self, place: Place, limit: int) -> Sequence[StoredEvent]:
        """Return the events behind a place, in order, from the primary.

        Args:
            place: where the reader has come to.
            limit: the most to return.

        Raises:
            StoreWentBack: the store has another event there, or none.
        """

    def has(self, place: Place) -> bool:
        """Return whether the store has the event of a place there."""

    def place_before(self, position: int) -> Place:
        """Return the place of the last event in front of a position; `START` without one."""

    def last_position(self) -> int:
        """Return the position of the last event; 0 if there is none."""

    def pending(self, after_position: int) -> Pending:
        """Return what stands behind a position."""

    def subscribers(self, application: str, broker_id: str = "") -> list[Subscriber]:
        """Return the subscribers of an application, and of those that have the same broker.

        Args:
            application: whose.
            broker_id: the broker; empty for the application's own alone.
        """

    def register(self, application: str, subscriber: Subscriber) -> None:
        """Remember a subscriber of an application, in place of what was known under its name."""

    def unregister(self, application: str, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics, altogether if none is left; returns from how many."""


class Leadership(Protocol):
    """One process's claim to be the active relay of an application; not for several threads.

    Every method raises StoreUnavailable if the server does not answer.

    Attributes:
        token: tells the present claim from all others; empty without one.
        broker_id: the broker that is relayed to; empty if it has no id.
        former_broker_id: the one before it, if what that had is to be given again; empty if not.
        is_first: whether no relay of this application has been active before.
        seen: who led when `claim` looked last; None if nobody ever had.
    """

    token: str
    broker_id: str
    former_broker_id: str
    is_first: bool
    seen: Led | None

    def led(self) -> Led | None:
        """Return who leads, or led last; None if nobody ever did."""

    def leader_of_another(self, broker_id: str) -> tuple[str, str] | None:
        """Return who relays to a broker for another application: the leader and the application.

        None if none leads there now.
        """

    def claim(self, broker_id: str, next_number: Callable[[], int] = ...) -> bool:
        """Become the active relay if there is none; returns whether this one is it now.

        Args:
            broker_id: the broker that is relayed to; empty if it has no id.
            next_number: returns a number that is higher than that of each claim before; without it,
                claims can be told apart by the database alone.
        """

    def holds(self) -> bool:
        """Return whether the claim still holds; the lease is renewed now and then."""

    def release(self) -> None:
        """Let another one lead at once; a second time does nothing."""

    def checkpoint(self) -> Place | None:
        """Return up to where all is known to be handled, or sent; None if no relay has ever run."""

    def checkpoints(self) -> list[Place]:
        """Return the checkpoints of this application and of those with its broker, lowest first."""

    def save_checkpoint(self, place: Place) -> bool:
        """Remember the checkpoint while the claim holds and the store has the event there.

        Returns:
            Whether it was written.
        """

    def note_new_broker_id(self) -> None:
        """Note the broker's new id for the applications that had its former one."""


class RelayedStore(Protocol):
    """An event store whose events a relay delivers: it has an outbox and a leadership.

    Attributes:
        on_commit: called after each commit with events, to wake the relay; the application sets it.
        lease_check: tells whether a lease is held; the application sets it if it is None.
    """

    on_commit: Callable[[], object] | None
    lease_check: LeaseCheck | None

    @property
    def where(self) -> str:
        """Names the database in errors, without credentials."""

    @property
    def outbox(self) -> Outbox:
        """What the relay reads."""

    def leadership(self, application: str, *, broker: str) -> Leadership:
        """Return what makes a process's relay the active one of an application.

        Args:
            application: whose relay.
            broker: names what it relays to, without credentials.
        """

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Return a block in which this thread waits no longer for an answer; None for no limit.

        Args:
            limit_s: seconds; a store whose driver has limits of its own may ignore it.
        """

    def forget_expired_commands(self) -> int:
        """Delete a batch of commands that have expired; returns how many, 0 if none is left."""

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""


class ReplicatedStore(Protocol):
    """An event store that may read streams from a replica, which may lag behind."""

    def read_from_primary(self, *streams: StreamName) -> None:
        """Read streams from no replica for a while: it may not know them in their newest state."""

    def check_replica(self) -> None:
        """Check that the replica, if there is one, is one of the store's database.

        Raises:
            InvalidSetting: it is another database, or one that has no tables of a store.
            SchemaError: the tables of the store's own database are missing.
            StoreUnavailable: a server does not answer.
        """


class SqlTablesStore(RelayedStore, Protocol):
    """An event store in tables of a SQL database, which commands of the CLI look after."""

    @property
    def engine(self) -> Any:
        """SQLAlchemy's engine."""
