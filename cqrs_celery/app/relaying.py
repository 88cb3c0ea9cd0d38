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
from ..store.events import Lease, StoredEvent, Subscriber
from ..store.ports import EventStore
from ..transport.clients import BrokerClient
from ..transport.merging import BODY
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


class Destination(Protocol):
    """Be where the relay gives events to."""

    has_leases: bool

    def position(self) -> int | None:
        """Return up to where events were given; None if nothing is known."""

    def start_at(self, position: int) -> None:
        """Begin behind a position, unless one is known."""

    def go_back(self, position: int) -> None:
        """Go on behind a position, whatever is known."""

    def enqueue(self, after_position: int, events: Sequence[StoredEvent]) -> int | None:
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
        """Say whether a worker still holds its message."""


@dataclass(frozen=True)
class RelayParts:
    """Be what a relay is put together from; and where its subscribers are registered.

    Attributes:
        store: has the events.
        outbox: gives them in order, and remembers what the queue may lose.
        destination: gets them.
        is_registered: set when this process has registered its subscribers. Before that, a relay
            could pass an event for which there is a subscriber.
    """

    store: Any
    outbox: Any
    destination: Destination
    is_registered: threading.Event = field(default_factory=threading.Event)

    def register(self, subscriber: Subscriber) -> int:
        """Register a subscriber where the relay finds it again, and where events are given."""
        self.outbox.register(subscriber)
        return self.destination.register(subscriber)

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; what it was sent stays. Returns from how many."""
        known: int = self.outbox.unregister(name, topics)
        return max(known, self.destination.unregister(name, topics))


def open_relay(app: celery.Celery, store: EventStore, *, is_reliable: bool) -> RelayParts | None:
    """Return what a relay of an application's store needs; None if the store delivers itself.

    The store's commits then wake it, and ask the queue whether their lease is held.

    Args:
        app: has the broker.
        store: has an outbox, if it needs a relay.
        is_reliable: whether the broker is the reliable queue.

    Raises:
        InvalidSetting: a broker is named that is RabbitMQ, and does not confirm what is sent.
    """
    outbox: Any = getattr(store, "outbox", None)
    if outbox is None:
        return None
    destination: Destination
    if is_reliable:
        options = app.conf.broker_transport_options or {}
        destination = RelayQueue(
            BrokerClient(app.connection_for_write),
            store_id=lambda: outbox.store_id,
            prefix=str(options.get("global_keyprefix", "")),
            body=BODY,
            where=app.connection_for_write().as_uri(),
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
        destination = CeleryDestination(app, outbox)
    sql: Any = store
    if destination.has_leases:
        sql.on_commit = destination.wake
        if sql.lease_check is None:
            sql.lease_check = destination.is_held
    return RelayParts(store, outbox, destination)


class CeleryDestination:
    """Send each event as a task of each subscription, by any broker that Celery knows.

    How far that has come is in the store's own database, so a relay that is killed sends again what
    it has sent since.

    Args:
        app: sends.
        outbox: remembers the position, and the subscribers.
    """

    has_leases = False

    def __init__(self, app: celery.Celery, outbox: Any) -> None:
        self._app = app
        self._outbox = outbox
        self._subscribers: list[Subscriber] = []
        self._read_at = 0.0

    def position(self) -> int | None:
        """Return up to where events were sent; None if none ever was."""
        found: int | None = self._outbox.checkpoint()
        return found

    def start_at(self, position: int) -> None:
        """Begin behind a position."""
        self._outbox.save_checkpoint(position)

    def go_back(self, position: int) -> None:
        """Go on behind a position."""
        self._outbox.save_checkpoint(position)

    def enqueue(self, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Send events to their subscribers, and remember the last one's position."""
        if time.monotonic() - self._read_at > WAIT_S:
            self._subscribers = self._outbox.subscribers()
            self._read_at = time.monotonic()
        with self._app.producer_pool.acquire(block=True) as producer:
            for stored in events:
                packed = pack_event(stored)
                for subscriber in self._subscribers:
                    if stored.event.type in subscriber.topics:
                        self._send(subscriber, stored, packed, producer)
        position = events[-1].global_position
        self._outbox.save_checkpoint(position)
        return position

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
        """Say yes: it can't be told, so the streams' versions decide."""
        return True
