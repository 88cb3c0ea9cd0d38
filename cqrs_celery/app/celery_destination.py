"""Send a relay's events as Celery tasks, where the broker is not the reliable queue."""

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

#: Seconds between two looks for new events where nobody wakes the relay.
POLL_S: Final = 0.1

#: Seconds of sending, with another broker, after which it is remembered how far that has come: less
#: than a leader's lease lasts without being renewed.
SENDING_S: Final = 1.0


class CeleryDestination:
    """A destination by any broker of Celery's: each event is sent as a task of each subscription.

    How far that has come is in the store's own database. So if a relay is killed, what it has sent
    since is sent again.

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
