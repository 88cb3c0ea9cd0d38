"""Put together what a relay needs: an outbox to read, and queues to give its events to.

A store that delivers within its append needs none. With the reliable queue as broker, each event is
put on the subscribers' queues exactly once. With any other broker, it is sent as one ordinary task
per subscription, at least once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import celery

from ..backends.redis.relay_queue import RelayQueue
from ..dispatch.envelope import pack_event
from ..errors import BrokerConflict
from ..store.capabilities import capabilities_of
from ..store.events import Lease, Place, StoredEvent, Subscriber
from ..store.ports import EventStore
from ..store.refusals import ClaimLost
from ..store.relay_ports import Leadership, Led, Outbox, RelayedStore, ReplicatedStore
from ..transport.clients import BrokerClient
from ..transport.envelope import BODY
from .settings import check_confirms

#: Seconds between two looks for new events where nobody wakes the relay.
POLL_S: Final = 0.1

#: Seconds for which the relay blocks on the server that wakes it; and between two looks by itself.
WAIT_S: Final = 0.5

#: Seconds to wait for the server to take a wake-up; no commit waits for it.
WAKE_ANSWER_S: Final = 0.2

#: Seconds to wait, twice at most, for what the server knows of a lease. A transaction is open
#: meanwhile, whose rows others may wait for.
LEASE_ANSWER_S: Final = 5.0


#: Seconds for which another broker's relay must be seen alive before its application is refused to
#: have a second one; by then it has noticed that it has lost its data, where it has.
CONFLICT_S: Final = 3.0

#: Seconds between two looks meanwhile.
CONFLICT_LOOK_S: Final = 0.2


#: Seconds of sending, with another broker, after which it is remembered how far that has come: less
#: than a leader's lease lasts without being renewed.
SENDING_S: Final = 1.0


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
    """What a relay is put together from; and where its subscribers are registered.

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
        """Gives the events in order, and knows the subscribers."""
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


def open_relay(
    app: celery.Celery,
    store: EventStore,
    application: str,
    *,
    is_reliable: bool,
) -> RelayParts | None:
    """Return what a relay of an application's store needs; None if the store delivers itself.

    The store's commits then wake it, and ask the queue whether their lease is held.

    Args:
        app: has the broker.
        store: has an outbox, if it needs a relay.
        application: whose relay it is.
        is_reliable: whether the broker is the reliable queue.

    Raises:
        InvalidSetting: a broker is named that is RabbitMQ, and does not confirm what is sent.
    """
    capabilities = capabilities_of(store)
    relayed = capabilities.relayed
    if relayed is None:
        return None
    destination: Destination
    outbox = relayed.outbox
    broker = app.connection_for_write().as_uri()
    leadership = relayed.leadership(application, broker=broker)
    if is_reliable:
        options = app.conf.broker_transport_options or {}
        destination = RelayQueue(
            BrokerClient(app.connection_for_write),
            store_id=lambda: outbox.store_id,
            prefix=str(options.get("global_keyprefix", "")),
            body=BODY,
            where=broker,
            wake_client=BrokerClient(
                app.connection_for_write, socket_timeout_s=WAKE_ANSWER_S, retries=0
            ),
            lease_client=BrokerClient(
                app.connection_for_write, socket_timeout_s=LEASE_ANSWER_S, retries=1
            ),
        )
    else:
        # Who names none may use the bus in this process alone; a worker is checked anyway.
        if app.conf.broker_write_url or app.conf.broker_url or app.conf.broker_transport:
            check_confirms(app)
        destination = CeleryDestination(app, outbox, leadership, application, where=broker)
    if destination.has_leases:
        relayed.on_commit = destination.wake
        if relayed.lease_check is None:
            relayed.lease_check = destination.is_held
    return RelayParts(relayed, destination, application, leadership, replica=capabilities.replica)


class CeleryDestination:
    """Send each event as a task of each subscription, by any broker that Celery knows.

    How far that has come is in the store's own database, so a relay that is killed sends again what
    it has sent since.

    Args:
        app: sends.
        outbox: knows the subscribers.
        leadership: remembers the position.
        application: whose subscribers.
        where: names the broker in errors, without credentials.
    """

    has_leases = False

    def __init__(
        self,
        app: celery.Celery,
        outbox: Outbox,
        leadership: Leadership,
        application: str,
        *,
        where: str = "the broker",
    ) -> None:
        self._app = app
        self._outbox = outbox
        self._leadership = leadership
        self._application = application
        self.where = where
        self._subscribers: list[Subscriber] = []
        self._read_at = 0.0

    def broker_id(self) -> str:
        """Return nothing: such a broker keeps no id."""
        return ""

    def position(self) -> int | None:
        """Return up to where events were sent; None if none ever was."""
        place = self._leadership.checkpoint()
        return None if place is None else int(place.position)

    def next_number(self) -> int:
        """Return 0: the database alone tells which claim holds."""
        return 0

    def is_at(self, token: str, position: int, broker_id: str) -> bool:
        """Return whether the store's own database knows of all that was sent."""
        return self.position() == position

    def take_over(
        self, token: str, place: Place | None = None, *, broker_id: str = ""
    ) -> Place | None:
        """Go on behind a place, or behind what the store's own database knows; returns it."""
        if place is not None and not self._leadership.save_checkpoint(place):
            raise ClaimLost
        return self._leadership.checkpoint()

    def enqueue(self, token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Send events to their subscribers, and remember the last one, while the claim holds.

        What takes long is remembered event by event, so that a claim that is lost meanwhile, or the
        end of this process, has less sent again; and the lease is renewed.
        """
        if time.monotonic() - self._read_at > WAIT_S:
            self._subscribers = self._outbox.subscribers(self._application)
            self._read_at = time.monotonic()
        saved_at = time.monotonic()
        with self._app.producer_pool.acquire(block=True) as producer:
            for stored in events:
                packed = pack_event(stored)
                for subscriber in self._subscribers:
                    if stored.event.type in subscriber.topics:
                        self._send(subscriber, stored, packed, producer)
                is_last = stored is events[-1]
                if is_last or time.monotonic() - saved_at > SENDING_S:
                    is_held = is_last or self._leadership.holds()
                    place = Place(stored.global_position, stored.event.event_id)
                    if not is_held or not self._leadership.save_checkpoint(place):
                        return self.position()
                    saved_at = time.monotonic()
        return events[-1].global_position

    def _send(
        self, subscriber: Subscriber, stored: StoredEvent, packed: Any, producer: Any
    ) -> None:
        metadata = stored.event.metadata
        self._app.send_task(
            subscriber.name,
            (packed,),
            task_id=f"{stored.event.event_id}:{subscriber.name}",
            queue=subscriber.queue,
            root_id=metadata.correlation_id or None,
            parent_id=metadata.causation_id or None,
            producer=producer,
            ignore_result=True,
            argsrepr="(<recorded event>,)",
        )

    def lowest_unhandled(self) -> int | None:
        """Return None: only the broker knows, and the position is not its to lose."""
        return None

    def wake(self) -> None:
        """Do nothing: the relay looks by itself."""

    def wait(self, timeout_s: float) -> None:
        """Wait for a moment."""
        time.sleep(min(timeout_s, POLL_S))

    def register(self, subscriber: Subscriber) -> int:
        """Return the number of its topics; the outbox has registered it."""
        self._read_at = 0.0
        return len(subscriber.topics)

    def register_all(self, subscribers: Iterable[Subscriber]) -> None:
        """Do nothing: the outbox has them."""

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Return 0: the outbox has removed it."""
        self._read_at = 0.0
        return 0

    def is_held(self, lease: Lease) -> bool:
        """Return True: it can't be told, so the streams' versions decide."""
        return True
