"""Hold messages for one channel under a lease: take, settle, beat, give back.

A holder is one consumer of the reliable queue. It outlives its channel: tasks that still run when
a connection is lost go on, their lease is renewed, and their acknowledgements arrive.

A thread of its own renews the lease, since the loop of a solo worker is blocked while a task runs.
The same thread sends settlements that the loop has not sent after `FLUSH_AFTER_S`, recovers what
dead consumers held, and stops renewing when an event loop that should be turning has stopped.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import Any
from uuid import uuid4

import redis

from ..queue.reliable_queue import ReliableQueue
from ..queue.values import (
    Exchange,
    Settlement,
    Taken,
    ack,
    bury,
    give_back,
    later,
    requeue,
)
from . import redriving, wire

logger = logging.getLogger(__name__)

#: Seconds after which the thread sends a settlement that the loop has not sent.
FLUSH_AFTER_S = 0.05

#: Leases without a turn of the event loop after which the lease is no longer renewed.
HANG_LEASES = 4

Line = tuple[str, str]


def tag_of(taken: Taken) -> str:
    """Return the delivery tag: it names the delivery, not only the message."""
    return f"{taken.id}.{taken.fence}"


class Holder:
    """Be one consumer of the queue.

    Args:
        queue: on a client of the holder's own, usable from several threads.
        lease_s: seconds that a lease lasts; renewed three times in that time.
        max_deliveries: a message that came back unfinished that often becomes a dead letter.
        name: the consumer's name; unique.
        on_settled: called when a thread other than the loop's has settled something.
    """

    def __init__(
        self,
        queue: ReliableQueue,
        *,
        lease_s: float,
        max_deliveries: int,
        name: str = "",
        on_settled: Callable[[], None] | None = None,
    ) -> None:
        self.queue = queue
        self.name = name or f"{os.uname().nodename}:{os.getpid()}:{uuid4().hex[:12]}"
        self.lease_s = lease_s
        self.max_deliveries = max_deliveries
        self.on_settled = on_settled
        #: monotonic time of the event loop's last turn; None where no loop turns.
        self.last_turn: float | None = None
        #: True while the loop runs user code itself, as the solo pool does.
        self.is_delivering = False
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._exchange_lock = threading.Lock()
        self._held: dict[str, Taken] = {}
        self._ready: deque[Taken] = deque()
        #: what waits behind the delivered first message of its sequence
        self._runs: dict[Line, deque[Taken]] = {}
        #: tags of deliveries with which this process has begun, and of those with which it may not
        #: begin any more, since their messages went back while they waited in the worker
        self._begun: set[str] = set()
        self._returned: set[str] = set()
        #: the tag of each batch, with those of its messages in their order
        self._batches: dict[str, tuple[str, ...]] = {}
        #: lines whose first message was settled so that the queue must say what becomes of the
        #: rest, each with that message; the settlement is not yet sent
        self._unsure: dict[Line, Taken] = {}
        self._settlements: list[Settlement] = []
        #: those of the exchange that is under way
        self._sending: Sequence[Settlement] = ()
        self._settled_at = 0.0
        self._must_reconcile = False
        self._is_closing = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        #: monotonic time since when no beat has failed or come late
        self._beats_since = 0.0
        self._last_beat = 0.0
        #: how many leases were lost: an answer from before the last one says nothing of the next
        self._losses = 0
        #: monotonic time until which nobody can have recovered what we hold
        self._held_until = 0.0
        self._queues: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Holder {self.name}: {len(self._held)} held>"

    # ------------------------------------------------------------ taking

    def consume(self, queues: Sequence[str]) -> None:
        """Take from these queues from now on; the lease lasts while there are any."""
        with self._lock:
            self._queues = tuple(queues)
            gone = [taken for taken in self._ready if taken.queue not in self._queues]
            for taken in gone:
                self._ready.remove(taken)
                self._give_back_line(taken)
        if self._thread is None and queues:
            self._start()
        if self._thread is not None:
            self.queue.consume(self.name, self._queues)
            if not queues and not self._held:
                self.flush()
                self._leave()

    def exchange(
        self,
        queues: Sequence[str],
        *,
        count: int,
        run: int,
        most: int | None = None,
        was_idle: bool,
    ) -> Exchange:
        """Send what was settled and take what is next.

        Args:
            queues: to take from, in the order of their turn.
            count: how many, of a sequence only the first counting; 0 only settles.
            run: the most of one sequence.
            most: the most in all; None for as many as `count` and `run` allow.
            was_idle: True if the last exchange brought nothing.

        Returns:
            The queue's answer; what was taken is ready in `next_ready`. It says that the consumer
            is not known where the lease was lost before the answer had come.

        Raises:
            redis.RedisError: as the driver raised it; nothing is forgotten.
        """
        if self._thread is None:
            self._start()
        if count and _unfinished:
            _finish_others()
        with self._exchange_lock:
            self._reconcile()
            with self._lock:
                settlements, self._settlements = self._settlements, []
                unsure, self._unsure = self._unsure, {}
                self._sending = settlements
                losses = self._losses
            try:
                answer = self.queue.settle_and_take(
                    self.name,
                    settlements,
                    queues=queues,
                    count=count,
                    run=run,
                    most=most,
                    was_idle=was_idle,
                )
            except BaseException:
                # Whether it happened is unknown: repeated settlements count nothing, and what was
                # taken without our knowing is given back by the next one.
                with self._lock:
                    self._sending = ()
                    self._settlements = settlements + self._settlements
                    self._unsure = unsure | self._unsure
                    self._must_reconcile = True
                raise
            with self._lock:
                if losses != self._losses:
                    # The thread has learnt meanwhile that the lease was lost: what was taken before
                    # that is with others, what was taken after it goes back.
                    self._must_reconcile = True
                    return Exchange(is_known=False)
                self._accept(answer, unsure)
                if answer.is_known:
                    self._sending = ()
        if not answer.is_known:
            self._lost_lease(losses)
        return answer

    def next_ready(self) -> Taken | None:
        """Return the next message to deliver; None if there is none."""
        with self._lock:
            if not self._ready:
                return None
            taken = self._ready.popleft()
            self._held[tag_of(taken)] = taken
            return taken

    def take_along(
        self, first: Taken, fits: Callable[[Taken], bool], most: int, *, batch: str
    ) -> list[Taken]:
        """Make one delivery of a message and others that are ready, or stand behind one of them.

        Of a sequence, only messages that follow each other go along.

        Args:
            first: the message, held already.
            fits: says of another whether it may go along.
            most: how many at most.
            batch: the tag of the delivery, if there are any others.

        Returns:
            The others, those of one sequence in its order; without any, nothing has changed.
        """
        found: list[Taken] = []
        with self._lock:
            self._follow(first, fits, most, found)
            passed: list[Taken] = []
            while self._ready and len(found) < most:
                taken = self._ready.popleft()
                if not fits(taken):
                    passed.append(taken)
                    continue
                found.append(taken)
                self._follow(taken, fits, most, found)
            self._ready.extendleft(reversed(passed))
            if found:
                for taken in found:
                    self._held[tag_of(taken)] = taken
                self._batches[batch] = tuple(tag_of(taken) for taken in (first, *found))
        return found

    def _follow(
        self, taken: Taken, fits: Callable[[Taken], bool], most: int, found: list[Taken]
    ) -> None:
        run = self._runs.get((taken.queue, taken.sequence)) if taken.sequence else None
        while run and len(found) < most and fits(run[0]):
            found.append(run.popleft())

    def held_until(self, tag: str) -> float:
        """Return the monotonic time until which nobody else can have a delivery.

        0 where the lease was lost since it was taken, though there may be a new one.
        """
        with self._lock:
            return self._held_until if tag in self._held else 0.0

    def return_ready(self) -> None:
        """Give back what was taken but can't be delivered now."""
        with self._lock:
            while self._ready:
                self._give_back_line(self._ready.popleft())

    @property
    def ready(self) -> int:
        """How many messages wait to be delivered."""
        return len(self._ready)

    @property
    def settled_at(self) -> float | None:
        """When the oldest settlement was made that is not sent, by the monotonic clock."""
        return self._settled_at if self._settlements else None

    def _accept(self, answer: Exchange, unsure: dict[Line, Taken]) -> None:
        revoked, refused = set(answer.revoked), set(answer.refused)
        for line, settled in unsure.items():
            if settled.id in refused:
                # Settled elsewhere, or by an exchange whose answer was lost: then some of the run
                # may be ours still.
                self._drop_run(line, settled.fence)
                self._must_reconcile = True
                continue
            run = self._runs.get(line)
            while run and run[0].id in revoked:
                run.popleft()
            self._next_of(line)
        lines: dict[Line, deque[Taken]] = {}
        for taken in answer.taken:
            line = taken.queue, taken.sequence
            if not taken.sequence:
                self._ready.append(taken)
            elif line in lines:
                lines[line].append(taken)
            else:
                lines[line] = self._runs[line] = deque()
                self._ready.append(taken)

    def _next_of(self, line: Line) -> None:
        """Make the next message of a sequence ready, now that the one before it is done."""
        run = self._runs.get(line)
        if run:
            self._ready.append(run.popleft())
        else:
            self._runs.pop(line, None)

    def _drop_run(self, line: Line, fence: int) -> None:
        """Forget what stood behind a message that is no longer ours."""
        run = self._runs.get(line)
        # The same sequence may have been taken again meanwhile.
        if run is not None and all(behind.fence == fence for behind in run):
            del self._runs[line]

    def _give_back_line(self, taken: Taken) -> None:
        """Give back an undelivered message; the queue takes back what stands behind it."""
        self._runs.pop((taken.queue, taken.sequence), None)
        self._add(give_back(taken.id, taken.fence))

    def begin(self, tag: str) -> bool:
        """Say whether a delivery may be begun with; from then on, it counts as running.

        False where its message went back while it waited in the worker: others have it.
        """
        with self._lock:
            if tag in self._returned:
                return False
            self._begun.add(tag)
            return True

    # ------------------------------------------------------------ settling

    def ack(self, tag: str, *, is_sure: bool = True) -> None:
        """Say that a delivery is done; the next of its sequence becomes ready at once.

        Args:
            tag: the delivery's.
            is_sure: False if it may have been settled elsewhere; then the next must wait until the
                queue has answered.
        """
        with self._lock:
            self._begun.discard(tag)
            if tag in self._batches:
                self._ack_batch(tag)
            taken = self._held.get(tag)
            if taken is None:
                return
            if not is_sure:
                self._settle_unsure(tag, ack(taken.id, taken.fence))
            else:
                del self._held[tag]
                self._add(ack(taken.id, taken.fence))
                if taken.sequence:
                    self._next_of((taken.queue, taken.sequence))
        self._tell()

    def requeue(self, tag: str, *, reason: dict[str, Any] | None = None) -> None:
        """Put a delivery back to its place; a dead letter if that has happened too often."""
        with self._lock:
            self._split(tag, reason)
            taken = self._held.get(tag)
            if taken is None:
                return
            if taken.tries + 1 >= self.max_deliveries:
                why = {"reason": "delivered too often", **(reason or {})}
                self.bury(tag, reason={**why, "deliveries": taken.tries + 1})
                return
            self._settle_unsure(tag, requeue(taken.id, taken.fence))
        self._tell()

    def give_back(self, tag: str) -> None:
        """Put a delivery that was not started back to its place, uncounted."""
        with self._lock:
            self._return_batch(tag, lambda taken: give_back(taken.id, taken.fence))
            taken = self._held.get(tag)
            if taken is not None:
                self._settle_unsure(tag, give_back(taken.id, taken.fence))
        self._tell()

    def later(self, tag: str, delay_s: float) -> None:
        """Deliver it again after a delay; its sequence waits."""
        delay_ms = int(delay_s * 1000)
        with self._lock:
            self._return_batch(tag, lambda taken: later(taken.id, taken.fence, delay_ms))
            taken = self._held.get(tag)
            if taken is not None:
                self._settle_unsure(tag, later(taken.id, taken.fence, delay_ms))
        self._tell()

    def bury(self, tag: str, *, reason: dict[str, Any]) -> None:
        """Make a delivery a dead letter.

        Args:
            tag: the delivery's.
            reason: plain values for whoever reads the letter; `reason` says it in words.
        """
        with self._lock:
            self._split(tag, reason)
            taken = self._held.get(tag)
            if taken is not None:
                why = json.dumps(reason, default=str)
                self._settle_unsure(tag, bury(taken.id, taken.fence, why))
        self._tell()

    def _ack_batch(self, tag: str) -> None:
        lines: dict[Line, None] = {}
        for member in self._batches.pop(tag):
            taken = self._held.pop(member)
            self._add(ack(taken.id, taken.fence))
            if taken.sequence:
                lines[taken.queue, taken.sequence] = None
        for line in lines:
            self._next_of(line)

    def _split(self, tag: str, reason: dict[str, Any] | None) -> None:
        """Put a failed batch's messages back, each to be handled alone."""
        members = self._batches.pop(tag, ())
        if members:
            logger.warning(
                "batch failed, its messages are handled one by one",
                extra={"messages": len(members), "reason": (reason or {}).get("reason")},
            )
        # The last one of a sequence first: each returns to its place, and counts.
        for member in reversed(members):
            taken = self._held[member]
            self._settle_unsure(member, requeue(taken.id, taken.fence))

    def _return_batch(self, tag: str, how: Callable[[Taken], Settlement]) -> None:
        lines: set[Line] = set()
        for member in self._batches.pop(tag, ()):
            taken = self._held[member]
            line = taken.queue, taken.sequence
            if taken.sequence and line in lines:
                # It returns with the first of its sequence.
                del self._held[member]
                continue
            lines.add(line)
            self._settle_unsure(member, how(taken))

    def _settle_unsure(self, tag: str, settlement: Settlement) -> None:
        self._begun.discard(tag)
        taken = self._held.pop(tag)
        self._add(settlement)
        if taken.sequence:
            self._unsure[taken.queue, taken.sequence] = taken

    def _add(self, settlement: Settlement) -> None:
        if not self._settlements:
            self._settled_at = time.monotonic()
        self._settlements.append(settlement)

    def _tell(self) -> None:
        if self.on_settled is not None:
            self.on_settled()

    def flush(self) -> None:
        """Send what was settled, without taking anything."""
        while self._settlements or self._must_reconcile:
            self.exchange((), count=0, run=1, was_idle=False)

    def _reconcile(self) -> None:
        """Give back what an unanswered take has put into our hands."""
        if not self._must_reconcile:
            return
        in_flight = self.queue.in_flight(self.name)
        with self._lock:
            known = {(t.id, t.fence) for t in [*self._held.values(), *self._ready]}
            known |= {(t.id, t.fence) for run in self._runs.values() for t in run}
            known |= {(s.id, s.fence) for s in self._settlements}
            for message_id, fence in in_flight.items():
                if (message_id, fence) not in known:
                    self._add(give_back(message_id, fence))
            self._must_reconcile = False

    # ------------------------------------------------------------ the lease

    def _start(self) -> None:
        self._register()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._keep, args=(self._stop,), name=f"cqrs-lease-{self.name}", daemon=True
        )
        self._thread.start()

    def _register(self) -> None:
        now = time.monotonic()
        self.queue.beat(self.name, self._lease_ms, register=True)
        self._held_until = now + self.lease_s
        self._beats_since = self._last_beat = time.monotonic()

    @property
    def _lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    def _keep(self, stop: threading.Event) -> None:
        """Beat three times a lease; send settlements that nobody else sends."""
        interval = self.lease_s / 3
        next_beat = time.monotonic() + interval
        while not stop.is_set():
            is_busy = bool(self._held or self._settlements)
            until_beat = max(0.0, next_beat - time.monotonic())
            stop.wait(min(until_beat, FLUSH_AFTER_S) if is_busy else until_beat)
            if stop.is_set():
                return
            now = time.monotonic()
            try:
                if self._settlements and now - self._settled_at >= FLUSH_AFTER_S:
                    self.flush()
                    if self._runs or self._ready:
                        self._tell()
                if self._is_closing and not self._held and not self._settlements:
                    self._leave()
                    return
                if now >= next_beat:
                    next_beat = now + interval
                    self._beat(now)
            except redis.RedisError as error:
                self._beats_since = time.monotonic()
                logger.warning(
                    "lease not renewed", extra={"consumer": self.name, "error": str(error)}
                )
                stop.wait(min(1.0, interval))

    def _beat(self, now: float) -> None:
        if self._is_hung(now):
            logger.error(
                "event loop hangs, lease not renewed",
                extra={"consumer": self.name, "held": len(self._held)},
            )
            self._beats_since = now
            return
        if now - self._last_beat > self.lease_s:
            self._beats_since = now
        self._last_beat = now
        losses = self._losses
        beat = self.queue.beat(self.name, self._lease_ms)
        if not beat.is_held:
            self._lost_lease(losses)
            return
        self._held_until = now + self.lease_s
        if beat.expired_queues:
            self.queue.delete_expired()
        if beat.letters_due:
            redriving.look_after(self.queue.letters)
        # After an outage all leases have ended; whoever has not beaten through it must not judge.
        if beat.ended and now - self._beats_since >= self.lease_s:
            for one in self.queue.recover(most_tries=self.max_deliveries):
                logger.warning(
                    "recovered a lost consumer's messages",
                    extra={
                        "consumer": one.consumer,
                        "messages": one.messages,
                        "dead_letters": one.dead_letters,
                    },
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

        Its log names them: messages that ran or waited here, each with its task and the task's id,
        and those that were done, of which nobody had been told. Of the latter, one that was told of
        by an exchange without an answer may have counted.

        Args:
            losses: how many there had been when the question was asked that has this answer. Loop
                and thread may both learn of one loss, and in between messages may be taken.
        """
        with self._lock:
            if losses != self._losses:
                return
            self._losses += 1
            lost = [*self._held.values(), *self._ready, *chain(*self._runs.values())]
            late = [*self._sending, *self._settlements]
            self._returned |= {*self._held, *self._batches} - self._begun
            self._begun.clear()
            self._sending = ()
            self._ready.clear()
            self._runs.clear()
            self._held.clear()
            self._batches.clear()
            self._settlements.clear()
            self._unsure.clear()
            self._must_reconcile = False
        logger.error(
            "lease lost: its messages were given to others",
            extra={
                "consumer": self.name,
                "messages": [taken.id for taken in lost],
                "tasks": [wire.task_of(taken) for taken in lost],
                "settled_too_late": [settlement.id for settlement in late],
            },
        )
        if self._is_closing:
            return
        self._register()
        self.queue.consume(self.name, self._queues)

    # ------------------------------------------------------------ the end

    def close(self, *, running: Collection[str] = ()) -> None:
        """Stop taking; give back all but what still runs, and leave when that is done too.

        Args:
            running: tags of deliveries whose tasks run on.
        """
        if os.getpid() != self._pid or self._is_closing or self._thread is None:
            return
        self._is_closing = True
        self.on_settled = None
        with self._lock:
            kept = self._begun.union(running)
            for batch, members in list(self._batches.items()):
                if batch in kept:
                    kept.update(members)
                else:
                    self._returned.add(batch)
                    self.give_back(batch)
            self._returned |= self._held.keys() - kept
            for tag in [tag for tag in self._held if tag not in kept]:
                self.give_back(tag)
            self.return_ready()
            for run in self._runs.values():
                if run:
                    self._add(give_back(run[0].id, run[0].fence))
            self._runs.clear()
        try:
            self.flush()
            if self._held:
                self.queue.consume(self.name, ())
            else:
                self._leave()
        except redis.RedisError:
            # The thread tries again; if it can't, the lease ends and others recover it all.
            _unfinished.add(self)
            logger.warning("messages not given back yet", extra={"consumer": self.name})

    def _leave(self) -> None:
        _unfinished.discard(self)
        self._stop.set()
        self._thread = None
        self.queue.leave(self.name)
        self.queue.client.close()


#: Holders of this process whose channel has closed while the server was away.
_unfinished: set[Holder] = set()


def _finish_others() -> None:
    """Send what closed channels give back, before another one takes what stands behind it."""
    for holder in list(_unfinished):
        try:
            holder.flush()
        except redis.RedisError:
            continue
        _unfinished.discard(holder)
