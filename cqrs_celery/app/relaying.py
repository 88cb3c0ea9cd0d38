"""The parts of a relay: the outbox that it reads, its events' destination, and its leadership."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..errors import BrokerConflict
from ..store.events import Lease, Place, StoredEvent, Subscriber
from ..store.relay_ports import Leadership, Led, Outbox, RelayedStore, ReplicatedStore

#: Seconds for which the relay blocks until it is woken; after them, it polls.
WAIT_S: Final = 0.5

#: Seconds for which another broker's relay must be seen alive before this broker's is refused. By
#: then, that relay has noticed if its broker has lost its data.
CONFLICT_S: Final = 3.0

#: Seconds between two lookups of the leader meanwhile.
CONFLICT_LOOK_S: Final = 0.2


class Destination(Protocol):
    """The destination of a relay's events.

    Attributes:
        has_leases: whether a worker's lease on its message can be looked up here.
        where: the destination's name in errors, without credentials.
    """

    has_leases: bool
    where: str

    def broker_id(self) -> str:
        """Return the broker's unique id; empty if it has none."""

    def position(self) -> int | None:
        """Return the position of the last event that was sent, or None if it is not known."""

    def next_number(self) -> int:
        """Return a number for a claim that is higher than all earlier ones."""

    def is_at(self, token: str, position: int, broker_id: str) -> bool:
        """Return whether a relay is still the one whose events are accepted, and at this position.

        Args:
            token: the relay's claim.
            position: the position of the last event that it sent.
            broker_id: the broker's id when the claim was made.
        """

    def take_over(
        self, token: str, place: Place | None = None, *, broker_id: str = ""
    ) -> Place | None:
        """Make this relay the one whose events are accepted.

        Args:
            token: the relay's claim.
            place: the place after which to go on; None for the one that the destination knows.
            broker_id: the broker's id when the claim was made; empty if it does not matter.

        Returns:
            The place after which to go on; None if the destination knows none.

        Raises:
            ClaimLost: a later claim has taken over already, or the broker's id has changed.
        """

    def enqueue(self, token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Send events to their subscribers, if the claim is still valid.

        Args:
            token: the relay's claim.
            after_position: the position of the event before them.
            events: the events, in order.

        Returns:
            The position of the last event that was sent; None if it is not known.
        """

    def lowest_unhandled(self) -> int | None:
        """Return the position of the oldest event not yet handled, or None if there is none."""

    def wake(self) -> None:
        """Wake the relay soon, without waiting and without raising an error."""

    def wait(self, timeout_s: float) -> None:
        """Wait until the relay is woken, at most `timeout_s` seconds."""

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber, and return the number of topics that are new for it."""

    def register_all(self, subscribers: Iterable[Subscriber]) -> None:
        """Register subscribers again after the broker has lost them."""

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics, and return the number it was removed from."""

    def is_held(self, lease: Lease) -> bool:
        """Return whether a worker's lease on its message is still valid."""


@dataclass(frozen=True)
class RelayParts:
    """The parts of a relay; they also register the subscribers of its events.

    Attributes:
        store: the event store with the outbox.
        destination: the destination of the events.
        application: the application's name.
        leadership: elects the active relay, and saves the checkpoint, which the queue may lose.
        is_registered: set when this process has registered its subscribers. A relay that started
            earlier could skip an event that has a subscriber.
        registered: the subscribers that this process has registered, by name, each with the id
            that the store had at that time.
        replica: the same store, if it may read from a replica.
    """

    store: RelayedStore
    destination: Destination
    application: str
    leadership: Leadership
    is_registered: threading.Event = field(default_factory=threading.Event)
    registered: dict[str, tuple[Subscriber, str]] = field(default_factory=dict)
    replica: ReplicatedStore | None = None

    @property
    def outbox(self) -> Outbox:
        """The store's outbox: the events in order, and their subscribers."""
        return self.store.outbox

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber in the outbox and with the destination.

        Returns:
            The number of topics that are new for it at the destination.
        """
        self._remember(subscriber)
        return self.destination.register(subscriber)

    def register_again(self, *, is_lost: bool = False) -> None:
        """Register this process's subscribers in the outbox again, if the store has a new id.

        Args:
            is_lost: whether the store has gone back to an earlier state, which needs this as well.

        Raises:
            SchemaError: the database has no tables.
            StoreUnavailable: the database does not answer.
        """
        for subscriber, store_id in list(self.registered.values()):
            if is_lost or store_id != self.outbox.store_id:
                self._remember(subscriber)

    def _remember(self, subscriber: Subscriber) -> None:
        self.outbox.register(self.application, subscriber)
        self.registered[subscriber.name] = subscriber, self.outbox.store_id

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; events that were sent to it stay in its queue.

        Returns:
            The number of topics that it was removed from.
        """
        self.registered.pop(name, None)
        known = self.outbox.unregister(self.application, name, topics)
        return max(known, self.destination.unregister(name, topics))

    def check_broker(self) -> None:
        """Check that no live relay of this application sends to another broker.

        If the last leader's lease is still valid, wait until it ends or is renewed. That relay may
        have been killed, or may be about to notice that this broker has lost its data, and with
        them its id.

        Raises:
            BrokerConflict: a relay of this application sends to another broker, and is alive.
            StoreUnavailable: the store or the broker does not answer.
        """
        began_at, first = time.monotonic(), None
        broker_id = self.destination.broker_id()
        while (led := self.leadership.led()) is not None and leads_elsewhere(led, broker_id):
            first = first or led
            is_renewed = led.until_ms != first.until_ms
            if is_renewed and time.monotonic() - began_at > CONFLICT_S:
                raise self.broker_conflict(led)
            time.sleep(CONFLICT_LOOK_S)

    def broker_conflict(self, led: Led) -> BrokerConflict:
        """Return the error for an application whose relay sends to another broker."""
        return BrokerConflict(
            f"{self.application!r} relays the events of {self.store.where} to"
            f" {led.broker or 'another broker'} already (its active relay is {led.leader}),"
            f" so not to {self.destination.where}, this worker's broker. Stop the workers"
            " there first; a broker of its own is for an application with another name (the"
            " setting cqrs_application).",
            application=self.application,
        )


def leads_elsewhere(led: Led, broker_id: str) -> bool:
    """Return whether the leader of an application's relays is alive, and sends to another broker.

    Brokers without an id count as the same one, since a broker may have several URLs.

    Args:
        led: the leader, as `Leadership.led` returns it.
        broker_id: the id of this process's broker.
    """
    return led.is_live and led.broker_id != broker_id
