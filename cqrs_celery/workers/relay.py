"""Bring committed events from a SQL store to their subscribers' queues.

Every worker has a relay; one of them is active, by a lease in the database, the others stand by
until that ends. It reads in the order of positions, so nothing is given before what stands in front
of it, and gives each batch in one step together with its own position. It waits to be woken by
whoever commits, and also looks by itself now and then.

What can go wrong, and what it does:

- the database or the queue does not answer: it tries again.
- the relay itself is frozen, or cut off: another one takes over when its lease has ended. What the
  former one gives then counts nothing; with a broker that is not the reliable queue, what it has in
  its hands is sent twice.
- the queue has lost its data, or is another one: it says so, registers all subscribers again, and
  gives once more what is not known to be handled.
- the store has gone back, as after the restoring of a backup: it says so, and does the same.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, Final

from celery import bootsteps

from ..app.relaying import CONFLICT_S, WAIT_S, RelayParts, leads_elsewhere
from ..app.settings import check_confirms
from ..dispatch.runtime import runtime_of
from ..errors import CQRSError, StoreError, StoreWentBack
from ..store.events import START, Place
from ..store.refusals import ClaimLost
from ..transport.faults import Faults
from .refusing import ending_the_worker

logger = logging.getLogger(__name__)

#: What it does, as its failures are logged.
STEP: Final = "give events to their subscribers"

#: Events given in one step.
BATCH: Final = 100

#: Seconds between two tries to become the active one.
STANDBY_S: Final = 1.0

#: Seconds between two log lines of a relay that stands by for another broker than its own.
CONFLICT_SAID_S: Final = 60.0

#: Seconds before the next try when something does not answer.
RETRY_S: Final = 0.5

#: Seconds between two looks at whether the queue has lost its data.
LOOK_S: Final = 1.0

#: Seconds between two notes of what is handled, for when that happens.
NOTE_S: Final = 10.0

#: Seconds after which a relay that has become the active one notes it for the first time.
FIRST_NOTE_S: Final = 1.0

#: Seconds between two deletions of expired commands; a full batch is followed by the next at once.
CLEAN_S: Final = 60.0

#: Seconds for which the relay waits for an answer of the database, of which it asks little.
ANSWER_S: Final = 5.0

#: Seconds that a worker waits at its end for the relay to come to a stop.
STOP_S: Final = 5.0


class Relay:
    """A relay of committed events; `run` returns when it was told to stop.

    Args:
        parts: outbox and destination.
        batch: events given in one step.
        note_s: seconds between two notes of what is handled.
    """

    def __init__(self, parts: RelayParts, *, batch: int = BATCH, note_s: float = NOTE_S) -> None:
        self._parts = parts
        self._store = parts.store
        self._outbox = parts.outbox
        self._destination = parts.destination
        self._leadership = parts.leadership
        self._batch = batch
        self._note_s = note_s
        self._stop = threading.Event()
        self._faults = Faults(logger, of=f"the relay of {self._store.where}", away=CQRSError)
        self._noted = START
        # The last event that this one has given, whatever the destination remembers.
        self._given = START
        # When the lease of another broker's relay ended as it was first seen, and when to say so.
        self._conflict: tuple[int, float] | None = None
        self._clean_at = 0.0

    def stop(self) -> None:
        """Tell the relay to stop after its current batch."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the relay was told to stop."""
        return self._stop.is_set()

    def run(self) -> None:
        """Relay, whenever no other relay does, until told to stop.

        The process's subscribers must be registered.
        """
        with self._store.limited(ANSWER_S):
            self._run()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._parts.register_again()
                broker_id = self._destination.broker_id()
                if not self._leadership.claim(broker_id, self._destination.next_number):
                    self._stand_by(broker_id)
                    continue
                level = logging.DEBUG if self._faults.are_there else logging.INFO
                where = self._store.where
                logger.log(level, "the relay of %s is active", where, extra={"store": where})
                try:
                    self._relay()
                finally:
                    self._release()
            except ClaimLost:
                self._stop.wait(RETRY_S)
            except Exception as error:  # noqa: BLE001  it is the last one that could go on
                self._say_down(error)
                self._stop.wait(RETRY_S)

    def _stand_by(self, broker_id: str) -> None:
        """Wait for the next try; log if the active relay's broker is, and stays, another one."""
        led, now = self._leadership.seen, time.monotonic()
        if led is None or not leads_elsewhere(led, broker_id):
            self._conflict = None
        elif self._conflict is None:
            self._conflict = led.until_ms, now + CONFLICT_S
        elif now > self._conflict[1] and led.until_ms != self._conflict[0]:
            self._conflict = led.until_ms, now + CONFLICT_SAID_S
            logger.error("%s", self._parts.broker_conflict(led), extra={"store": self._store.where})
        # Two that have claimed at the same moment shall not do so again.
        self._stop.wait(STANDBY_S * random.uniform(0.5, 1))  # noqa: S311

    def _release(self) -> None:
        try:
            self._leadership.release()
        except CQRSError as error:
            logger.debug("the relay's lease ends by itself: %s", error)

    def _relay(self) -> None:
        place: Place | None = None
        looked_at = time.monotonic()
        # Soon after the beginning, too: the one before may have ended long after its last note.
        noted_at = looked_at - self._note_s + min(FIRST_NOTE_S, self._note_s)
        while not self._stop.is_set() and self._leadership.holds():
            # Only who leads may say where to go on: hence one step a turn.
            if place is None:
                place = self.begin()
                continue
            try:
                events = self._outbox.read_behind(place, self._batch)
            except StoreWentBack:
                place = None
                continue
            if events:
                found = self._destination.enqueue(self._leadership.token, place.position, events)
                last = events[-1]
                place = self._given = Place(last.global_position, last.event.event_id)
                if found != place.position:
                    # Another relay was quicker, or data were lost.
                    place = None
                    continue
            now = time.monotonic()
            if now - looked_at >= LOOK_S:
                looked_at = now
                if not self._is_at(place):
                    place = None
                    continue
            if now - noted_at >= self._note_s:
                noted_at = now
                self._note(place)
            if now >= self._clean_at:
                # Noted before: if it fails, events do not wait for it again and again.
                self._clean_at = now + CLEAN_S
                # A batch a turn: events do not wait for it.
                if self._store.forget_expired_commands():
                    self._clean_at = now
            self._faults.clear(STEP)
            if len(events) < self._batch:
                self._wait(bool(events))

    def _wait(self, had_events: bool) -> None:
        # Commits come in groups: what came meanwhile is looked for before the next sleep.
        if not had_events:
            self._destination.wait(WAIT_S)

    def begin(self) -> Place:
        """See to what was lost, and return the place behind which to go on.

        Only for who leads: what any other relay gives counts nothing afterwards.

        Raises:
            ClaimLost: another relay leads, or the broker has lost its data since the claim.
            StoreUnavailable: the database or the queue does not answer.
        """
        leadership = self._leadership
        checkpoints = [place for place in leadership.checkpoints() if self._outbox.has(place)]
        noted = checkpoints[0] if checkpoints else START
        place = self._destination.take_over(leadership.token, broker_id=leadership.broker_id)
        # An application that has joined another one's broker is behind that.
        is_behind = bool(checkpoints) and noted.position < checkpoints[-1].position
        if place is None or leadership.former_broker_id or is_behind:
            place = self._begin_anew(noted, is_known=bool(checkpoints))
        # Where the store itself remembers how far all was sent, that went back with it.
        given = place if self._destination.has_leases else self._given
        for known in (place, given):
            if not self._outbox.has(known):
                place = self._go_back(known, noted)
                break
        self._given = place
        return place

    def _begin_anew(self, noted: Place, *, is_known: bool) -> Place:
        """Give everything to the queue that is not known to be handled; returns where to begin."""
        leadership = self._leadership
        if is_known:
            logger.log(
                logging.INFO if leadership.is_first else logging.ERROR,
                "the queue has lost its data, or is another one; events are given to their"
                " subscribers again from position %d on",
                noted.position + 1,
                extra={"store": self._store.where, "from_position": noted.position + 1},
            )
        leadership.note_new_broker_id()
        self._destination.register_all(
            self._outbox.subscribers(self._parts.application, leadership.broker_id)
        )
        place = self._go_to(noted)
        leadership.former_broker_id = ""
        return place

    def _go_back(self, lost: Place, noted: Place) -> Place:
        """Go on from what is known to be handled, since the store no longer has what was given."""
        # What the pools and the reader know is of the state that was lost.
        self._store.close()
        last = self._outbox.last_position()
        logger.error(
            "the store went back: it has no event %s at position %d any more, its last is at %d, as"
            " after a backup was restored or a replica promoted that lagged; events are given to"
            " their subscribers again from position %d on",
            lost.event_id or "(of an earlier version)",
            lost.position,
            last,
            noted.position + 1,
            extra={
                "store": self._store.where,
                "lost_position": lost.position,
                "last_position": last,
                "from_position": noted.position + 1,
            },
        )
        self._parts.register_again(is_lost=True)
        return self._go_to(noted)

    def _go_to(self, place: Place) -> Place:
        leadership = self._leadership
        if not leadership.save_checkpoint(place):
            raise ClaimLost
        self._noted = place
        self._destination.take_over(leadership.token, place, broker_id=leadership.broker_id)
        return place

    def _is_at(self, place: Place) -> bool:
        leadership = self._leadership
        return bool(self._destination.is_at(leadership.token, place.position, leadership.broker_id))

    def _note(self, place: Place) -> None:
        """Note up to where everything is handled, for when the queue loses its data."""
        if not self._destination.has_leases:
            return
        lowest = self._destination.lowest_unhandled()
        if not self._is_at(place):
            # What looked handled may have been lost.
            return
        if lowest is not None and lowest <= place.position:
            if lowest - 1 <= self._noted.position:
                return
            place = self._outbox.place_before(lowest)
        if place.position > self._noted.position and self._leadership.save_checkpoint(place):
            self._noted = place

    def _say_down(self, error: Exception) -> None:
        self._faults.note(STEP, error)


class RelayStep(bootsteps.StartStopStep):
    """The step that runs a relay in a thread of the main process, if the store needs one.

    After the pool, whose processes are forked before the thread is there; it begins when the
    worker has registered its subscriptions.
    """

    requires = ("celery.worker.components:Pool",)
    name = "cqrs-relay"

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._relay: Relay | None = None
        self._thread: threading.Thread | None = None

    def start(self, parent: Any) -> None:
        """Start it.

        Raises:
            SystemExit: the application is put together wrongly, or its relays give its events to
                another broker (BrokerConflict); it is logged, and the worker ends.
        """
        with ending_the_worker():
            runtime_of(parent.app)
            parts = parent.app.cqrs.relay
            if parts is None:
                return
            if not parts.destination.has_leases:
                check_confirms(parent.app)
            try:
                parts.check_broker()
            except StoreError as error:
                # The relay itself says so, and waits.
                logger.debug("the relay's broker not checked: %s", error)
        self._relay = Relay(parts)
        self._thread = threading.Thread(
            target=self._run, args=(self._relay, parts), name="cqrs-relay", daemon=True
        )
        self._thread.start()

    def _run(self, relay: Relay, parts: RelayParts) -> None:
        while not relay.is_stopped:
            if parts.is_registered.wait(STANDBY_S):
                relay.run()

    def stop(self, parent: Any) -> None:
        """Stop it, and wait for it."""
        if self._relay is not None and self._thread is not None:
            self._relay.stop()
            self._thread.join(STOP_S)

    def terminate(self, parent: Any) -> None:
        """Stop it, too."""
        self.stop(parent)
