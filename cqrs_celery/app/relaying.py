"""The parts of a relay: an outbox to read, a destination of its events, and who leads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from ..errors import BrokerConflict
from ..store.events import Lease, Place, StoredEvent, Subscriber
from ..store.relay_ports import Leadership, Led, Outbox, RelayedStore, ReplicatedStore

#: Seconds for which the relay blocks on the server that wakes it; and between two looks by itself.
WAIT_S: Final = 0.5

#: Seconds for which another broker's relay must be seen alive before its application is refused to
#: have a second one; by then it has noticed that it has lost its data, where it has.
CONFLICT_S: Final = 3.0

#: Seconds between two looks meanwhile.
CONFLICT_LOOK_S: Final = 0.2


class Destination(Protocol):
    """Where the relay gives events to.

    Attributes:
        has_leases: whether a worker's hold on its message can be looked up here.
        where: names it in errors, without credentials.
    """

    has_leases: bool
    where: str

    def broker_id(self) -> str:
        """Return what tells this broker from all others; empty if nothing can."""

    def position(self) -> int | None:
        """Return up to where events were given; None if nothing is known."""

    def next_number(self) -> int:
        """Return a number for a claim, higher than every one before."""

    def is_at(self, token: str, position: int, broker_id: str) -> bool:
        """Return whether a relay is still the one whose events count, and has come so far.

        Args:
            token: the relay's claim.
            position: up to which it gave events.
            broker_id: the broker's id when the claim was made.
        """

    def take_over(
        self, token: str, place: Place | None = None, *, broker_id: str = ""
    ) -> Place | None:
        """Become the one whose events count.

        Args:
            token: the relay's claim.
            place: to go on behind; None for what is known.
            broker_id: the broker's id when the claim was made; empty if it does not matter.

        Returns:
            The place behind which to go on; None if nothing is known.

        Raises:
            ClaimLost: a later claim has taken over already, or the broker is another one.
        """

    def enqueue(self, token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Give events to their subscribers; returns the position now, None if nothing is known."""

    def lowest_unhandled(self) -> int | None:
        """Return the position of the oldest event that is not handled; None if there is none."""

    def wake(self) -> None:
        """Wake the relay soon; returns at once and raises nothing."""

    def wait(self, timeout_s: float) -> None:
        """Wait until somebody wakes the relay, or for so long."""

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber; returns the number of topics that are new to it."""

    def register_all(self, subscribers: Iterable[Subscriber]) -> None:
        """Register subscribers again that were forgotten."""

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; returns from how many."""

    def is_held(self, lease: Lease) -> bool:
        """Return whether a worker still holds its message."""


@dataclass(frozen=True)
class RelayParts:
    """The parts of a relay, with which the subscribers of its events are registered.

    Attributes:
        store: has the events.
        destination: gets them.
        application: whose relay it is.
        leadership: makes one of its relays the active one, and remembers what the queue may lose.
        is_registered: set when this process has registered its subscribers. Before that, a relay
            could pass an event for which there is a subscriber.
        registered: what this process has registered, by name, with the id of the store then.
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
        """The events in order, and their subscribers."""
        return self.store.outbox

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber where the relay finds it again, and where events are given."""
        self._remember(subscriber)
        return self.destination.register(subscriber)

    def register_again(self, *, is_lost: bool = False) -> None:
        """Register in the database what this process has registered, if that is another one now.

        Args:
            is_lost: it is the same one in an earlier state.

        Raises:
            SchemaError: it has no tables.
            StoreUnavailable: it does not answer.
        """
        for subscriber, store_id in list(self.registered.values()):
            if is_lost or store_id != self.outbox.store_id:
                self._remember(subscriber)

    def _remember(self, subscriber: Subscriber) -> None:
        self.outbox.register(self.application, subscriber)
        self.registered[subscriber.name] = subscriber, self.outbox.store_id

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; what it was sent stays. Returns from how many."""
        self.registered.pop(name, None)
        known = self.outbox.unregister(self.application, name, topics)
        return max(known, self.destination.unregister(name, topics))

    def check_broker(self) -> None:
        """Check that no other relays of this application have another broker.

        Where the last one's lease has not ended, that is waited for: it may have been killed, or be
        about to notice that this broker has lost its data, and with them its id.

        Raises:
            BrokerConflict: they do, and are alive.
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
        """Return the error for an application that has another broker."""
        return BrokerConflict(
            f"{self.application!r} relays the events of {self.store.where} to"
            f" {led.broker or 'another broker'} already (its active relay is {led.leader}),"
            f" so not to {self.destination.where}, this worker's broker. Stop the workers"
            " there first; a broker of its own is for an application with another name (the"
            " setting cqrs_application).",
            application=self.application,
        )


def leads_elsewhere(led: Led, broker_id: str) -> bool:
    """Return whether who leads an application's relays is alive, and has another broker.

    Two brokers without an id can't be told apart: one of them may have several names.

    Args:
        led: who leads it, as `Leadership.led` returns it.
        broker_id: this one's broker.
    """
    return led.is_live and led.broker_id != broker_id
