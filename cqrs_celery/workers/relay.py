"""Bring committed events from a SQL store to their subscribers' queues.

Every worker has a relay; one of them is active, the others stand by until its connection to the
database, or its process, ends. It reads in the order of positions, so nothing is given before what
stands in front of it, and gives each batch in one step together with its own position. It waits to
be woken by whoever commits, and looks by itself beside that.

What can go wrong, and what it does:

- the database or the queue does not answer: it tries again.
- the queue has lost its data: it says so, registers all subscribers again, and gives once more what
  is not known to be handled.
- the database is behind the queue, as after the restoring of a backup: it says so, and goes on from
  the database's last event.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

from celery import bootsteps

from ..app.relaying import WAIT_S, RelayParts
from ..dispatch.runtime import runtime_of
from ..errors import CQRSError

logger = logging.getLogger(__name__)

#: Events given in one step.
BATCH: Final = 100

#: Seconds between two tries to become the active one.
STANDBY_S: Final = 1.0

#: Seconds before the next try when something does not answer.
RETRY_S: Final = 0.5

#: Seconds between two looks at whether the queue has lost its data.
LOOK_S: Final = 1.0

#: Seconds between two notes of what is handled, for when that happens.
NOTE_S: Final = 10.0

#: Seconds between two deletions of expired commands.
CLEAN_S: Final = 3600.0

#: Seconds that a worker waits at its end for the relay to come to a stop.
STOP_S: Final = 5.0


class Relay:
    """Be a relay; `run` returns when it was told to stop.

    Args:
        parts: outbox and destination.
        batch: events given in one step.
        note_s: seconds between two notes of what is handled.
    """

    def __init__(self, parts: RelayParts, *, batch: int = BATCH, note_s: float = NOTE_S) -> None:
        self._store = parts.store
        self._outbox = parts.outbox
        self._destination = parts.destination
        self._batch = batch
        self._note_s = note_s
        self._stop = threading.Event()
        self._is_down = False
        self._noted: int | None = None

    def stop(self) -> None:
        """Tell it to stop, after the batch that it is at."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    def run(self) -> None:
        """Relay, whenever no other relay does, until told to stop.

        The process's subscribers must be registered.
        """
        while not self._stop.is_set():
            try:
                leadership = self._store.lead()
                if leadership is None:
                    self._stop.wait(STANDBY_S)
                    continue
                with leadership:
                    logger.info("relay active", extra={"store": self._store.where})
                    self._relay(leadership)
            except Exception as error:  # noqa: BLE001  it is the last one that could go on
                self._say_down(error)
                self._stop.wait(RETRY_S)

    def _relay(self, leadership: Any) -> None:
        position = self.begin()
        looked_at = noted_at = cleaned_at = time.monotonic()
        while not self._stop.is_set() and leadership.holds():
            events = self._outbox.read(position, self._batch)
            if events:
                found = self._destination.enqueue(position, events)
                position = events[-1].global_position
                if found != position:
                    # Another relay was quicker, or data were lost.
                    position = self.begin()
            now = time.monotonic()
            if now - looked_at >= LOOK_S:
                looked_at = now
                if self._destination.position() != position:
                    position = self.begin()
            if now - noted_at >= self._note_s:
                noted_at = now
                self._note(position)
            # Until none is left, with a batch of events after each call.
            if now - cleaned_at >= CLEAN_S and not self._store.forget_expired_commands():
                cleaned_at = now
            self._is_down = False
            if len(events) < self._batch:
                self._wait(bool(events))

    def _wait(self, had_events: bool) -> None:
        # Commits come in groups: what came meanwhile is looked for before the next sleep.
        if not had_events:
            self._destination.wait(WAIT_S)

    def begin(self) -> int:
        """Return the position behind which to go on, having seen to what was lost.

        Raises:
            StoreUnavailable: the database or the queue does not answer.
        """
        position, noted = self._destination.position(), self._outbox.checkpoint()
        if position is None:
            if noted is None:
                self._outbox.save_checkpoint(0)
            else:
                logger.error(
                    "the queue has lost its data; events are given to their subscribers again",
                    extra={"store": self._store.where, "from_position": noted + 1},
                )
                self._destination.register_all(self._outbox.subscribers())
            self._destination.start_at(noted or 0)
            position = self._destination.position() or 0
        last = self._outbox.last_position()
        if position > last:
            logger.error(
                "the database is behind the queue, as after restoring a backup; events are relayed"
                " from its last one on",
                extra={"store": self._store.where, "queue": position, "database": last},
            )
            self._destination.go_back(last)
            self._outbox.save_checkpoint(min(noted or 0, last))
            position = last
        return position

    def _note(self, position: int) -> None:
        """Note up to where everything is handled, for when the queue loses its data."""
        if not self._destination.has_leases:
            return
        lowest = self._destination.lowest_unhandled()
        if self._destination.position() != position:
            # What looked handled may have been lost.
            return
        handled = position if lowest is None else min(position, lowest - 1)
        if handled > (self._noted or 0):
            self._outbox.save_checkpoint(handled)
            self._noted = handled

    def _say_down(self, error: Exception) -> None:
        level = logging.DEBUG if self._is_down else logging.WARNING
        if not isinstance(error, CQRSError):
            level = logging.ERROR
        self._is_down = True
        logger.log(
            level,
            "relay interrupted, tries again",
            extra={"store": self._store.where, "why": str(error)},
            exc_info=not isinstance(error, CQRSError),
        )


class RelayStep(bootsteps.StartStopStep):
    """Run a relay in a thread of the worker's main process, if its store needs one.

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
        """Start it."""
        runtime_of(parent.app)
        parts = parent.app.cqrs.relay
        if parts is None:
            return
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
