"""One consumer of the queue, under a lease: take, settle, beat, give back.

The consumer outlives its channel: if a connection is lost, running tasks go on, their lease is
renewed, and their acknowledgements arrive.

A separate thread renews the lease, since a running task blocks the loop of a solo worker. It uses a
connection of its own, and waits for no answer longer than a sixth of a lease. It stops renewing if
an event loop that should turn has stopped. A second thread sends settlements that the loop has not
sent (see `lease_threads`). A third recovers the messages of dead consumers (see `recoverer`).

`exchange` is above 50 lines: half of it is its contract, and what it does is one turn under a lock.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any
from uuid import uuid4

import redis

from ...clock import elapsed_s
from ...queue.reliable_queue import NO_BATCHES, ReliableQueue
from ...queue.values import Exchange
from ..faults import Faults
from .deliveries import Deliveries
from .lease_log import log_hung, log_lost, log_unfinished
from .lease_threads import FLUSH_AFTER_S, LeaseThreads
from .process_locks import ProcessLock
from .recoverer import NO_ANSWER, Recoverer
from .unfinished import flush_unfinished, unfinished

logger = logging.getLogger(__name__)

#: Seconds after which the thread asks which queues are paused, if no exchange has told it.
ASK_PAUSED_S = 1.0

#: Leases without a turn of the event loop after which the lease is no longer renewed.
HANG_LEASES = 4

#: The errors of a step that do not end the lease's thread. SystemExit would end it silently. Any
#: other error that is no Exception, such as gevent's GreenletExit, is meant to end it.
_SURVIVED = (Exception, SystemExit, KeyboardInterrupt)


class LeasedConsumer:
    """One consumer of the queue, under a lease.

    Args:
        queue: the queues, on a client of their own that several threads may use.
        lease_s: seconds that a lease lasts; it is renewed three times in that time.
        max_deliveries: a message that came back unfinished this often becomes a dead letter.
        name: the consumer's unique name; "" to make one.
        on_settled: called when a delivery was settled, from any thread.
        about: returns the description of this consumer for recovery and display; see
            `ReliableQueue.consume`.
        beats: the same queues, on a client that waits for no answer longer than a sixth of a
            lease; None for `queue`.
        lock: the lock by which others on this host see that this process lives; None if it has
            none.
        upkeep: a step of the queues' upkeep; called after each beat with the consumer's name.
    """

    def __init__(
        self,
        queue: ReliableQueue,
        *,
        lease_s: float,
        max_deliveries: int,
        name: str = "",
        on_settled: Callable[[], None] | None = None,
        about: Callable[[], Mapping[str, Any]] = dict,
        beats: ReliableQueue | None = None,
        lock: ProcessLock | None = None,
        upkeep: Callable[[str], None] | None = None,
    ) -> None:
        self.queue = queue
        self.name = name or f"{os.uname().nodename}:{os.getpid()}:{uuid4().hex[:12]}"
        self.lease_s = lease_s
        #: the messages that it has taken, and their states
        self.deliveries = Deliveries(max_deliveries=max_deliveries, on_settled=on_settled)
        #: monotonic time of the event loop's last turn; None without an event loop
        self.last_turn: float | None = None
        #: True while the loop itself runs user code, as the solo pool does
        self.is_delivering = False
        self._pid = os.getpid()
        self._exchange_lock = threading.Lock()
        self._is_closing = False
        #: the threads that renew the lease and send settlements
        self.threads = LeaseThreads(
            self.name,
            lease_s=lease_s,
            beat=self._beat,
            send=self._send_late,
            is_busy=lambda: bool(self.deliveries or self.deliveries.settled_at),
            attempt=self._attempt,
        )
        self._beats = beats or queue
        self._lock = lock
        self._upkeep = upkeep
        self._recoverer = self._new_recoverer()
        #: time of `elapsed_s` until which nobody can have recovered our messages
        self._held_until = 0.0
        self._queues: tuple[str, ...] = ()
        #: the paused queues, by the queue's last answer
        self.paused: frozenset[str] = frozenset()
        self._asked_at = 0.0
        self._about_others = about
        #: what the queue was last told about this consumer
        self._told: tuple[tuple[str, ...], Mapping[str, Any]] | None = None
        self._faults = Faults(logger, of=f"consumer {self.name}")

    def __repr__(self) -> str:
        return f"<LeasedConsumer {self.name}: {len(self.deliveries)} held>"

    def _new_recoverer(self) -> Recoverer:
        return Recoverer(
            self.queue,
            name=self.name,
            lease_s=self.lease_s,
            max_deliveries=self.deliveries.max_deliveries,
            folder=None if self._lock is None else self._lock.path.parent,
            upkeep=self._upkeep,
        )

    # ------------------------------------------------------------ taking

    def consume(self, queues: Sequence[str]) -> None:
        """Take from these queues from now on; the lease is kept while there are any.

        Raises:
            OSError: no thread could be started to renew the lease.
        """
        self._queues = tuple(queues)
        self.deliveries.return_others(self._queues)
        if self.threads.renewing is None and queues:
            self._start()
        if self.threads.renewing is not None:
            self._tell_queue()
            if not queues and not self.deliveries:
                self.flush()
                self._leave_if_done()

    def _tell_queue(self) -> None:
        """Tell the queue which queues wake this consumer, and its description."""
        queues, about = self._queues, self._about()
        self.queue.consume(self.name, queues, about=about)
        self._told = queues, about

    def _about(self) -> Mapping[str, Any]:
        known = {**self._about_others(), "lease_s": self.lease_s}
        return known if self._lock is None else known | self._lock.facts

    def _tell_changes(self) -> None:
        # The pool may have grown or shrunk, or a queue may have got batches.
        if self._queues and self._told != (self._queues, self._about()):
            self._tell_queue()

    def exchange(
        self,
        queues: Sequence[str],
        *,
        count: int,
        run: int,
        batches: Mapping[str, int] = NO_BATCHES,
        was_idle: bool,
    ) -> Exchange:
        """Send the settlements and take what is next.

        Args:
            queues: the queues to take from, in the order of their turn.
            count: the most deliveries to take; of a sequence only the first message counts. 0 only
                settles.
            run: the most messages of one sequence.
            batches: the queues of which one delivery holds many messages, each with how many.
            was_idle: True if the last exchange brought nothing.

        Returns:
            The queue's answer; the messages taken are ready in `deliveries`. If the lease was lost
            before the answer came, the answer says that the consumer is unknown.

        Raises:
            redis.RedisError: as the driver raised it; the settlements are kept.
            OSError: no thread could be started to renew the lease; nothing was taken.
        """
        if self.threads.renewing is None:
            self._start()
        if count and unfinished:
            flush_unfinished()
        with self._exchange_lock:
            self.threads.revive()
            self._reconcile()
            batch = self.deliveries.begin_exchange()
            try:
                answer = self.queue.settle_and_take(
                    self.name,
                    batch.settlements,
                    queues=queues,
                    count=count,
                    run=run,
                    batches=batches,
                    was_idle=was_idle,
                )
            except BaseException:
                self.deliveries.restore(batch)
                raise
            is_new = self.deliveries.accept(batch, answer)
        if not is_new:
            return Exchange(is_known=False)
        if not answer.is_known:
            self._lost_lease(batch.losses)
        self._note_paused(answer.paused)
        return answer

    def ask_paused(self) -> None:
        """Ask which queues are paused, and give back their messages that have not begun."""
        self._note_paused(self.queue.paused())

    def _note_paused(self, queues: Sequence[str]) -> None:
        self._asked_at = time.monotonic()
        self.paused = frozenset(queues)
        if self.paused:
            self.deliveries.return_undelivered(self.paused)
            self.deliveries.return_unbegun(self.paused)

    def held_until(self, tag: str) -> float:
        """Return the time of `elapsed_s` until which no other consumer can have a delivery.

        It is 0 if the lease was lost since the delivery was taken, even if there is a new lease.
        """
        # In this order: after a loss, the deliveries are dropped before there is a new lease.
        until = self._held_until
        return until if self.deliveries.has(tag) else 0.0

    def flush(self) -> None:
        """Send the settlements, without taking anything."""
        while self.deliveries.settled_at is not None or self.deliveries.must_reconcile:
            self.exchange((), count=0, run=1, was_idle=False)

    def _reconcile(self) -> None:
        if self.deliveries.must_reconcile:
            self.deliveries.reconcile(self.queue.in_flight(self.name))

    # ------------------------------------------------------------ the lease

    def _start(self) -> None:
        # Before anything is taken: messages that a dead consumer had prefetched keep their place.
        self._attempt("recover what a process of this host held", self._recoverer.recover_on_host)
        self._register()
        try:
            self.threads.start(beats_at=time.monotonic() + self.lease_s / 3)
        except OSError:
            # The lease would end unnoticed; without a lease, nothing is taken.
            self._attempt("leave", lambda: self.queue.leave(self.name))
            raise

    def _register(self) -> None:
        asked = elapsed_s()
        # Not with the short timeout of a beat: the connection is not made yet.
        beat = self.queue.beat(self.name, self._lease_ms, register=True)
        self._held_until = asked + self.lease_s
        if self._lock is not None:
            self._lock.users.add(self.name)
        self._attempt(
            "start its recoverer",
            lambda: self._recoverer.note_beat(beat, asked=asked, got=elapsed_s(), has_beaten=False),
        )

    @property
    def _lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    def _attempt(self, step: str, function: Callable[..., object], *args: Any) -> bool:
        """Do one of a thread's steps, and note how it ended; return False if it failed."""
        # Errors that end a thread are held back only in the consumer's own threads.
        is_own = self.threads.is_current()
        survived: tuple[type[BaseException], ...] = _SURVIVED if is_own else (Exception,)
        try:
            function(*args)
        except survived as error:
            if function == self._beat or isinstance(error, NO_ANSWER):
                self._recoverer.note_failure()
            self._faults.note(step, error)
            return False
        self._faults.clear(step)
        return True

    def _send_late(self, now: float) -> None:
        """Send settlements that have waited; leave if that was the last thing to do."""
        if now - self._asked_at >= ASK_PAUSED_S and self.deliveries.has_unbegun:
            # A running task may block the loop, which then receives no wake-ups.
            self.ask_paused()
        settled_at = self.deliveries.settled_at
        if settled_at is not None and now - settled_at >= FLUSH_AFTER_S:
            self.flush()
            on_settled = self.deliveries.on_settled
            if self.deliveries.waits and on_settled is not None:
                self._attempt("tell the event loop what is ready", on_settled)
        if self._is_closing and not self.deliveries:
            self._leave_if_done()

    def _beat(self, now: float, stop: threading.Event) -> None:
        if self._is_hung(now):
            self._recoverer.note_failure()
            self._attempt(
                "log that the event loop hangs", log_hung, self.name, len(self.deliveries)
            )
            return
        losses, asked = self.deliveries.losses, elapsed_s()
        beat = self._beats.beat(self.name, self._lease_ms)
        got = elapsed_s()
        if stop.is_set():
            # Another thread has left the queue meanwhile: the answer means no loss.
            return
        if not beat.is_held:
            self._lost_lease(losses)
            return
        self._held_until = asked + self.lease_s
        if self._lock is not None:
            self._lock.touch()
        self._attempt("tell the queue what has changed here", self._tell_changes)
        self._attempt(
            "start its recoverer", lambda: self._recoverer.note_beat(beat, asked=asked, got=got)
        )

    def _is_hung(self, now: float) -> bool:
        return (
            self.last_turn is not None
            and not self.is_delivering
            and not self._is_closing
            and now - self.last_turn > HANG_LEASES * self.lease_s
        )

    def _lost_lease(self, losses: int) -> None:
        """Handle the loss of the lease: others have the messages; what still runs will not count.

        Args:
            losses: how many losses there had been when the question with this answer was sent.
        """
        lost = self.deliveries.lose(losses)
        if lost is None:
            return
        self._attempt("log what it has lost", log_lost, self.name, lost)
        if self._is_closing:
            return
        # The recovery has deleted the consumer. If a step fails now, the next beat repeats it.
        self._told = None
        self._register()
        self._tell_queue()

    # ------------------------------------------------------------ the end

    def close(self, *, running: Collection[str] = ()) -> None:
        """Stop taking, give back all but the running deliveries, and leave when these are done.

        Args:
            running: the tags of deliveries whose tasks still run.
        """
        if os.getpid() != self._pid or self._is_closing or self.threads.renewing is None:
            return
        self._is_closing = True
        self.deliveries.on_settled = None
        self.deliveries.return_all(but=running)
        try:
            self.flush()
            if self.deliveries:
                self._queues = ()
                self._tell_queue()
            else:
                self._leave_if_done()
        except redis.RedisError:
            # The thread tries again; if it fails too, the lease ends and others recover everything.
            unfinished.add(self)
            log_unfinished(self.name)

    def _leave_if_done(self) -> None:
        """Leave the queue, unless it was left before, or messages or settlements remain.

        Both the sending thread and the thread that closes the channel may call this. Neither may
        close the client during an exchange of the other, whose settlements may come back.
        """
        with self._exchange_lock:
            has_left = self.threads.renewing is None
            if has_left or self.deliveries or self.deliveries.settled_at is not None:
                return
            unfinished.discard(self)
            self.threads.stop.set()
            self._recoverer.stop()
            # A worker that was told to consume nothing may be told to consume again.
            self._recoverer = self._new_recoverer()
            self.threads.forget()
            self.queue.leave(self.name)
            if self._lock is not None:
                self._lock.users.discard(self.name)
            for client in {self.queue.client, self._beats.client}:
                client.close()
