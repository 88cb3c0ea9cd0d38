"""Send committed events from a SQL store to their subscribers' queues.

Every worker has a relay. One relay is active, by a lease in the database; the others stand by until
the lease ends. The active relay reads events in the order of their positions, so no event is sent
before an earlier one. It sends each batch in one step together with the batch's position. Commits
wake it, and it also polls from time to time.

Failures, and how the relay handles them:

- The database or the queue does not answer: the relay tries again.
- The relay itself is frozen or cut off: another one takes over when the lease has ended. Events
  that the former one still sends are ignored. If the broker is not the reliable queue, the batch
  that it was sending is sent twice.
- The queue has lost its data, or is another one: the relay logs it, registers all subscribers
  again, and sends again all events that are not known to be handled.
- The store has gone back, such as after a backup was restored: the relay logs it, and does the
  same.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from typing import Any, Final

from celery import bootsteps

from ..app.broker import check_confirms
from ..app.relaying import CONFLICT_S, WAIT_S, RelayParts, leads_elsewhere
from ..dispatch.runtime import runtime_of
from ..errors import CQRSError, StoreError, StoreWentBack
from ..store.events import START, Place
from ..store.refusals import ClaimLost
from ..transport.faults import Faults
from .refusing import ending_the_worker

logger = logging.getLogger(__name__)

#: The step's name in the log of its failures: "could not …".
STEP: Final = "send events to their subscribers"

#: The most events sent in one step.
BATCH: Final = 100

#: Seconds between two attempts to become the active relay.
STANDBY_S: Final = 1.0

#: Seconds between two log lines of a standby relay whose broker is not the active relay's.
CONFLICT_SAID_S: Final = 60.0

#: Seconds before the next attempt if the database or the queue does not answer.
RETRY_S: Final = 0.5

#: Seconds between two checks whether the queue has lost its data.
LOOK_S: Final = 1.0

#: Seconds between two checkpoints, from which the relay goes on if the queue has lost its data.
NOTE_S: Final = 10.0

#: Seconds between becoming active and the first checkpoint.
FIRST_NOTE_S: Final = 1.0

#: Seconds between two deletions of expired commands; a full batch is followed by the next at once.
CLEAN_S: Final = 60.0

#: The most seconds to wait for an answer of the database; the relay's queries are small.
ANSWER_S: Final = 5.0

#: The most seconds that a stopping worker waits for the relay to end.
STOP_S: Final = 5.0


class Relay:
    """A relay of committed events; `run` returns when it was told to stop.

    Args:
        parts: the outbox, the destination and the leadership.
        batch: the most events to send in one step.
        note_s: seconds between two checkpoints.
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
        # The last event that this relay has sent, whatever the destination remembers.
        self._given = START
        # A relay of another broker: the end of its lease when seen, and the time after which to
        # log it.
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
        """Send events whenever no other relay is active; return when told to stop.

        The process's subscribers must be registered before.
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
            except Exception as error:  # noqa: BLE001  the relay must go on after any error
                self._say_down(error)
                self._stop.wait(RETRY_S)

    def _stand_by(self, broker_id: str) -> None:
        """Wait for the next attempt; log if the active relay's broker stays another one."""
        led, now = self._leadership.seen, time.monotonic()
        if led is None or not leads_elsewhere(led, broker_id):
            self._conflict = None
        elif self._conflict is None:
            self._conflict = led.until_ms, now + CONFLICT_S
        elif now > self._conflict[1] and led.until_ms != self._conflict[0]:
            self._conflict = led.until_ms, now + CONFLICT_SAID_S
            logger.error("%s", self._parts.broker_conflict(led), extra={"store": self._store.where})
        # A random time, so that two relays that claimed at the same moment do not do so again.
        self._stop.wait(STANDBY_S * random.uniform(0.5, 1))  # noqa: S311

    def _release(self) -> None:
        try:
            self._leadership.release()
        except CQRSError as error:
            logger.debug("the relay's lease was not released and expires by itself: %s", error)

    def _relay(self) -> None:
        place: Place | None = None
        looked_at = time.monotonic()
        # The first checkpoint comes soon: the former relay may have ended long after its last one.
        noted_at = looked_at - self._note_s + min(FIRST_NOTE_S, self._note_s)
        while not self._stop.is_set() and self._leadership.holds():
            # Only the leader may decide where to go on, so `holds` is checked before each step.
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
                    # Another relay has sent these events, or the queue has lost its data.
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
                # Set before the deletion: if that fails, events do not wait for it again at once.
                self._clean_at = now + CLEAN_S
                # One batch per turn, so that events do not wait for the deletion.
                if self._store.forget_expired_commands():
                    self._clean_at = now
            self._faults.clear(STEP)
            if len(events) < self._batch:
                self._wait(bool(events))

    def _wait(self, had_events: bool) -> None:
        # Commits come in groups, so the relay reads once more before it waits.
        if not had_events:
            self._destination.wait(WAIT_S)

    def begin(self) -> Place:
        """Repair what the queue or the store has lost, and return the place after which to go on.

        Only the leader may call it. Events that any other relay sends afterwards are ignored.

        Raises:
            ClaimLost: another relay leads, or the broker has lost its data since the claim.
            StoreUnavailable: the database or the queue does not answer.
        """
        leadership = self._leadership
        checkpoints = [place for place in leadership.checkpoints() if self._outbox.has(place)]
        noted = checkpoints[0] if checkpoints else START
        place = self._destination.take_over(leadership.token, broker_id=leadership.broker_id)
        # An application that has joined another one's broker may have a lower checkpoint.
        is_behind = bool(checkpoints) and noted.position < checkpoints[-1].position
        if place is None or leadership.former_broker_id or is_behind:
            place = self._begin_anew(noted, is_known=bool(checkpoints))
        # If the store itself remembers the last event sent, that went back with the store.
        given = place if self._destination.has_leases else self._given
        for known in (place, given):
            if not self._outbox.has(known):
                place = self._go_back(known, noted)
                break
        self._given = place
        return place

    def _begin_anew(self, noted: Place, *, is_known: bool) -> Place:
        """Register all subscribers again; return the place after which to send all events again."""
        leadership = self._leadership
        if is_known:
            logger.log(
                logging.INFO if leadership.is_first else logging.ERROR,
                "the queue has lost its data, or is another one; events are sent to their"
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
        """Go on from the checkpoint, since the store no longer has an event that was sent."""
        # The pools and the reader hold information about the state that was lost.
        self._store.close()
        last = self._outbox.last_position()
        logger.error(
            "the store went back: it has no event %s at position %d any more, and its last event is"
            " at %d. A backup may have been restored, or a lagging replica promoted. Events are"
            " sent to their subscribers again from position %d on",
            lost.event_id or "(sent by an earlier release)",
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
        """Save a checkpoint: the place up to which everything is handled."""
        if not self._destination.has_leases:
            return
        lowest = self._destination.lowest_unhandled()
        if not self._is_at(place):
            # Events that seem to be handled may have been lost.
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

    It starts after the pool, so that the pool's processes are forked before the thread exists. The
    relay begins when the worker has registered its subscriptions.
    """

    requires = ("celery.worker.components:Pool",)
    name = "cqrs-relay"

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self._relay: Relay | None = None
        self._thread: threading.Thread | None = None

    def start(self, parent: Any) -> None:
        """Start the relay.

        Raises:
            SystemExit: the configuration is wrong, or the application's relays send its events to
                another broker (BrokerConflict); the error is logged, and the worker ends.
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
                # The relay itself logs the error and waits.
                logger.debug("the relay's broker was not checked: %s", error)
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
        """Stop the relay, and wait for its end."""
        if self._relay is not None and self._thread is not None:
            self._relay.stop()
            self._thread.join(STOP_S)

    def terminate(self, parent: Any) -> None:
        """Stop the relay when the worker is terminated."""
        self.stop(parent)
