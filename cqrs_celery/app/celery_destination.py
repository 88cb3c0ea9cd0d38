"""Send a relay's events as Celery tasks, if the broker is not the reliable queue."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import celery

from ..dispatch.envelope import pack_event
from ..store.events import Lease, Place, StoredEvent, Subscriber
from ..store.refusals import ClaimLost
from ..store.relay_ports import Leadership, Outbox
from .relaying import WAIT_S

#: Seconds between two polls for new events; this broker has no way to wake the relay.
POLL_S: Final = 0.1

#: Seconds of sending after which the checkpoint is saved. This is less than a leader's lease lasts
#: without being renewed.
SENDING_S: Final = 1.0


class CeleryDestination:
    """A destination for any broker that Celery supports: one task per event and subscription.

    The checkpoint is saved in the event store's database. If a relay is killed, the events that it
    has sent since the last checkpoint are sent again.

    Args:
        app: the Celery application that sends the tasks.
        outbox: lists the subscribers.
        leadership: saves the checkpoint.
        application: the name of the application whose subscribers get the events.
        where: the broker's name in errors, without credentials.
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
        """Return an empty text: such a broker has no id."""
        return ""

    def position(self) -> int | None:
        """Return the position of the last event sent, or None if none has been sent."""
        place = self._leadership.checkpoint()
        return None if place is None else int(place.position)

    def next_number(self) -> int:
        """Return 0: the database alone decides which claim is valid."""
        return 0

    def is_at(self, token: str, position: int, broker_id: str) -> bool:
        """Return whether the checkpoint in the store's database is at a position."""
        return self.position() == position

    def take_over(
        self, token: str, place: Place | None = None, *, broker_id: str = ""
    ) -> Place | None:
        """Save a place as the checkpoint, if one is given, and return the checkpoint."""
        if place is not None and not self._leadership.save_checkpoint(place):
            raise ClaimLost
        return self._leadership.checkpoint()

    def enqueue(self, token: str, after_position: int, events: Sequence[StoredEvent]) -> int | None:
        """Send events to their subscribers, and save the last one's position, under the claim.

        If sending takes long, the checkpoint is saved in between, and the lease is renewed with it.
        If the claim is lost or the process ends, fewer events are then sent again.
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
        """Return None: only the broker knows this, and the checkpoint is not kept there."""
        return None

    def wake(self) -> None:
        """Do nothing: the relay polls."""

    def wait(self, timeout_s: float) -> None:
        """Wait until the next poll is due, `timeout_s` at most."""
        time.sleep(min(timeout_s, POLL_S))

    def register(self, subscriber: Subscriber) -> int:
        """Return the number of the subscriber's topics; the outbox has registered it."""
        self._read_at = 0.0
        return len(subscriber.topics)

    def register_all(self, subscribers: Iterable[Subscriber]) -> None:
        """Do nothing: the outbox keeps the subscribers."""

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Return 0: the outbox has removed the subscriber."""
        self._read_at = 0.0
        return 0

    def is_held(self, lease: Lease) -> bool:
        """Return True: such a broker has no leases, so the streams' versions decide."""
        return True
