"""One consumer of the queue, under a lease: take, settle, beat, give back.

It outlives its channel: tasks that still run when a connection is lost go on, their lease is
renewed, and their acknowledgements arrive.

A thread of its own renews the lease, since the loop of a solo worker is blocked while a task runs,
on a connection of its own that waits for no answer longer than a sixth of a lease. It stops
renewing when an event loop that should be turning has stopped. A second thread sends settlements
that the loop has not sent (see `lease_threads`), a third recovers what dead consumers held (see
`recoverer`).
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

#: Seconds after which the thread asks which queues are paused, where no exchange has told it.
ASK_PAUSED_S = 1.0

#: Leases without a turn of the event loop after which the lease is no longer renewed.
HANG_LEASES = 4

#: What a step of the lease's thread may raise without ending it. SystemExit would end it in
#: silence. What is no Exception beside these, such as gevent's GreenletExit, is meant to end it.
_SURVIVED = (Exception, SystemExit, KeyboardInterrupt)


class LeasedConsumer:
    """One consumer of the queue, under a lease.

    Args:
        queue: on a client of its own, usable from several threads.
        lease_s: seconds that a lease lasts; renewed three times in that time.
        max_deliveries: a message that came back unfinished that often becomes a dead letter.
        name: the consumer's name; unique.
        on_settled: called when something was settled, from any thread.
        about: returns what recovery and those who look should know of this consumer; see
            `ReliableQueue.consume`.
        beats: the same queue, on a client that waits for no answer longer than a sixth of a lease;
            None for `queue`.
        lock: of this process, by which others of its host see that it lives; None where it has
            none.
        upkeep: a step of the queues' upkeep; called at each beat with the consumer's name.
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
        #: what it has taken, and what became of that
        self.deliveries = Deliveries(max_deliveries=max_deliveries, on_settled=on_settled)
        #: monotonic time of the event loop's last turn; None where no loop turns.
        self.last_turn: float | None = None
        #: True while the loop runs user code itself, as the solo pool does.
        self.is_delivering = False
        self._pid = os.getpid()
        self._exchange_lock = threading.Lock()
        self._is_closing = False
        #: they renew the lease and send settlements
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
        #: time of `elapsed_s` until which nobody can have recovered what we hold
        self._held_until = 0.0
        self._queues: tuple[str, ...] = ()
        #: the paused queues, as the queue has told them last
        self.paused: frozenset[str] = frozenset()
        self._asked_at = 0.0
        self._about_others = about
        #: what the queue was last told of this consumer
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
        """Take from these queues from now on; the lease lasts while there are any."""
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
        """Tell the queue what wakes this consumer, and what it is."""
        queues, about = self._queues, self._about()
        self.queue.consume(self.name, queues, about=about)
        self._told = queues, about

    def _about(self) -> Mapping[str, Any]:
        known = {**self._about_others(), "lease_s": self.lease_s}
        return known if self._lock is None else known | self._lock.facts

    def _tell_changes(self) -> None:
        # Its pool may have grown or shrunk, or a queue has come to have batches.
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
        """Send what was settled and take what is next.

        Args:
            queues: to take from, in the order of their turn.
            count: how many deliveries, of a sequence only the first counting; 0 only settles.
            run: the most of one sequence.
            batches: the queues of which one delivery holds many, each with how many.
            was_idle: True if the last exchange brought nothing.

        Returns:
            The queue's answer; what was taken is ready in `deliveries`. It says that the consumer
            is not known where the lease was lost before the answer had come.

        Raises:
            redis.RedisError: as the driver raised it; nothing is forgotten.
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
        """Ask which queues are paused, and give back what was taken of them and has not begun."""
        self._note_paused(self.queue.paused())

    def _note_paused(self, queues: Sequence[str]) -> None:
        self._asked_at = time.monotonic()
        self.paused = frozenset(queues)
        if self.paused:
            self.deliveries.return_undelivered(self.paused)
            self.deliveries.return_unbegun(self.paused)

    def held_until(self, tag: str) -> float:
        """Return the time of `elapsed_s` until which nobody else can have a delivery.

        0 where the lease was lost since it was taken, though there may be a new one.
        """
        # In this order: after a loss, what was held is let go of before there is a new lease.
        until = self._held_until
        return until if self.deliveries.has(tag) else 0.0

    def flush(self) -> None:
        """Send what was settled, without taking anything."""
        while self.deliveries.settled_at is not None or self.deliveries.must_reconcile:
            self.exchange((), count=0, run=1, was_idle=False)

    def _reconcile(self) -> None:
        if self.deliveries.must_reconcile:
            self.deliveries.reconcile(self.queue.in_flight(self.name))

    # ------------------------------------------------------------ the lease

    def _start(self) -> None:
        # Before anything is taken: what a dead one had prefetched comes ahead of what is behind it.
        self._attempt("recover what a process of this host held", self._recoverer.recover_on_host)
        self._register()
        try:
            self.threads.start(beats_at=time.monotonic() + self.lease_s / 3)
        except OSError:
            # The lease would end unseen; without one, nothing is taken.
            self._attempt("leave", lambda: self.queue.leave(self.name))
            raise

    def _register(self) -> None:
        asked = elapsed_s()
        # Not in the short time that a beat has for an answer: the connection is yet to be made.
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
        """Do one of a thread's steps, and note how it ended; False if it failed."""
        # Another thread's end is its own business.
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
        """Send what was settled a while ago; leave if that was the last thing to do."""
        if now - self._asked_at >= ASK_PAUSED_S and self.deliveries.has_unbegun:
            # The loop may be blocked, and its ear for wake-ups with it, while a task runs.
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
            # It has left meanwhile, by another thread: what the queue says is no loss.
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
        """Learn that others have taken over what we held; what runs will count nothing.

        Args:
            losses: how many there had been when the question was asked that has this answer.
        """
        lost = self.deliveries.lose(losses)
        if lost is None:
            return
        self._attempt("log what it has lost", log_lost, self.name, lost)
        if self._is_closing:
            return
        # Whoever recovered it has forgotten the consumer: what fails now, the next beat repeats.
        self._told = None
        self._register()
        self._tell_queue()

    # ------------------------------------------------------------ the end

    def close(self, *, running: Collection[str] = ()) -> None:
        """Stop taking; give back all but what still runs, and leave when that is done too.

        Args:
            running: tags of deliveries whose tasks run on.
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
            # The thread tries again; if it can't, the lease ends and others recover it all.
            unfinished.add(self)
            log_unfinished(self.name)

    def _leave_if_done(self) -> None:
        """Leave the queue if nothing is held and nothing has to be sent, and it was not left yet.

        The thread and the one that closes the channel may both come here. Neither may close the
        client while an exchange of the other's is under way, whose settlements may come back.
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
