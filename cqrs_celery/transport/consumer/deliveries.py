"""What one consumer has taken, delivered, begun with, settled and not told the queue of yet.

Nothing here talks to the queue. The consumer carries what is settled to it, and its answers back.
Any thread may call anything: tasks end in threads of a pool, the lease has a thread of its own.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ...queue.values import (
    Exchange,
    Settlement,
    Taken,
    ack,
    bury,
    give_back,
    later,
    requeue,
)
from .letter_log import log_letter

logger = logging.getLogger(__name__)

SequenceKey = tuple[str, str]


def tag_of(taken: Taken) -> str:
    """Return the delivery tag: it names the delivery, not only the message."""
    return f"{taken.id}.{taken.fence}"


class SettlementBatch(NamedTuple):
    """What one exchange carries to the queue.

    Attributes:
        settlements: what was settled.
        unsure: the sequences of which the queue must say what becomes of the rest, each with its
            first message, which is among the settled ones.
        losses: how many leases had been lost; an answer from before a loss says nothing of the
            lease after it.
    """

    settlements: list[Settlement]
    unsure: dict[SequenceKey, Taken]
    losses: int


class Lost(NamedTuple):
    """What a lost lease has cost: what was held, and what was settled too late."""

    held: list[Taken]
    settled: list[Settlement]


class Deliveries:
    """The messages that one consumer holds, and what became of them.

    Args:
        max_deliveries: a message that came back unfinished that often becomes a dead letter.
        on_settled: called when something was settled.
    """

    def __init__(
        self, *, max_deliveries: int, on_settled: Callable[[], None] | None = None
    ) -> None:
        self.max_deliveries = max_deliveries
        self.on_settled = on_settled
        #: True when the queue may have given us something that we do not know of
        self.must_reconcile = False
        self._lock = threading.RLock()
        self._held: dict[str, Taken] = {}
        self._ready: deque[Taken] = deque()
        #: what waits behind the delivered first message of its sequence
        self._runs: dict[SequenceKey, deque[Taken]] = {}
        #: tags of deliveries with which this process has begun, and of those with which it may not
        #: begin any more, since their messages went back while they waited in the worker
        self._begun: set[str] = set()
        #: tags of deliveries that a pool without such a moment has been given
        self._handed: set[str] = set()
        #: tags of what went back of paused queues, whose credit the channel has not got back yet
        self._unbegun: list[str] = []
        self._returned: set[str] = set()
        #: the tag of each batch, with those of its messages in their order
        self._batches: dict[str, tuple[str, ...]] = {}
        #: as in `SettlementBatch`, of settlements that are not sent yet
        self._unsure: dict[SequenceKey, Taken] = {}
        self._settlements: list[Settlement] = []
        #: those of the exchange that is under way
        self._sending: list[Settlement] = []
        self._settled_at = 0.0
        self._losses = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def ready(self) -> int:
        """How many messages wait to be delivered."""
        return len(self._ready)

    @property
    def waits(self) -> bool:
        """Whether anything is to be delivered that was not yet, now or when its turn comes."""
        return bool(self._runs or self._ready)

    @property
    def settled_at(self) -> float | None:
        """When the oldest settlement was made that is not sent, by the monotonic clock."""
        return self._settled_at if self._settlements else None

    @property
    def losses(self) -> int:
        """How many leases were lost."""
        return self._losses

    def has(self, tag: str) -> bool:
        """Say whether a delivery is neither settled nor lost."""
        return tag in self._held

    # ------------------------------------------------------------ delivering

    def next_ready(self, queue: str | None = None) -> Taken | None:
        """Return the next message to deliver; None if there is none.

        Args:
            queue: the queue that it must come from; None for any.
        """
        with self._lock:
            for taken in self._ready:
                if queue is None or taken.queue == queue:
                    break
            else:
                return None
            self._ready.remove(taken)
            self._held[tag_of(taken)] = taken
            return taken

    def collect_batch(
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

    def begin(self, tag: str) -> bool:
        """Say whether a delivery may be begun with; from then on, it counts as running.

        False where its message went back while it waited in the worker: others have it.
        """
        with self._lock:
            if tag in self._returned:
                return False
            self._begun.add(tag)
            return True

    def hand_over(self, tag: str, *, is_begun: bool) -> bool:
        """Say whether a delivery may be given to a pool: not if its message went back meanwhile.

        Args:
            tag: the delivery's.
            is_begun: whether the pool will not ask whether it may begin, so that it has begun now.
        """
        with self._lock:
            if tag in self._returned:
                self._returned.discard(tag)
                return False
            if is_begun and (tag in self._held or tag in self._batches):
                self._handed.add(tag)
            return True

    def return_ready(self) -> set[str]:
        """Give back what was taken but can't be delivered now; returns its queues."""
        queues = set()
        with self._lock:
            while self._ready:
                taken = self._ready.popleft()
                queues.add(taken.queue)
                self._give_back_sequence(taken)
        return queues

    def return_others(self, queues: Collection[str]) -> None:
        """Give back what was taken and not delivered, but for these queues."""
        with self._lock:
            gone = [taken for taken in self._ready if taken.queue not in queues]
            for taken in gone:
                self._ready.remove(taken)
                self._give_back_sequence(taken)

    def return_undelivered(self, queues: Collection[str]) -> None:
        """Give back what was taken of these queues and not delivered; also behind what was."""
        with self._lock:
            for taken in [taken for taken in self._ready if taken.queue in queues]:
                self._ready.remove(taken)
                self._give_back_sequence(taken)
            for key in [key for key in self._runs if key[0] in queues]:
                run = self._runs.pop(key)
                if run:
                    self._add(give_back(run[0].id, run[0].fence))

    @property
    def has_unbegun(self) -> bool:
        """Whether anything is held that has not begun."""
        return self.waits or len(self._held) > len(self._begun) + len(self._handed)

    def returned_unbegun(self) -> list[str]:
        """Return the tags of what `return_unbegun` has given back since the last call."""
        with self._lock:
            tags, self._unbegun = self._unbegun, []
            return tags

    def return_unbegun(self, queues: Collection[str]) -> None:
        """Give back what was delivered of these queues, and neither begun nor given to a pool."""
        with self._lock:
            kept, gone = self._begun | self._handed, set()
            for batch, members in list(self._batches.items()):
                if batch not in kept and self._held[members[0]].queue in queues:
                    gone.add(batch)
                kept.update(members)
            gone |= {
                tag for tag, one in self._held.items() if one.queue in queues and tag not in kept
            }
            self._returned |= gone
            self._unbegun += gone
            for tag in gone:
                self.give_back(tag)

    def _give_back_sequence(self, taken: Taken) -> None:
        """Give back an undelivered message; the queue takes back what stands behind it."""
        self._runs.pop((taken.queue, taken.sequence), None)
        self._add(give_back(taken.id, taken.fence))

    def return_all(self, *, but: Collection[str]) -> None:
        """Give back everything that this process has not begun with.

        Args:
            but: tags of deliveries whose tasks run on.
        """
        with self._lock:
            kept = self._begun.union(but)
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

    def drop(self, tag: str) -> None:
        """Forget a delivery that the queue has settled by itself."""
        with self._lock:
            self._held.pop(tag, None)

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
            self._handed.discard(tag)
            if tag in self._batches:
                self._ack_batch(tag, is_sure=is_sure)
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
        if taken is not None:
            log_letter(taken, reason)
        self._tell()

    def _ack_batch(self, tag: str, *, is_sure: bool) -> None:
        keys: dict[SequenceKey, None] = {}
        for member in self._batches.pop(tag):
            taken = self._held[member]
            if not is_sure:
                self._settle_unsure(member, ack(taken.id, taken.fence))
                continue
            del self._held[member]
            self._add(ack(taken.id, taken.fence))
            if taken.sequence:
                keys[taken.queue, taken.sequence] = None
        for key in keys:
            self._next_of(key)

    def _split(self, tag: str, reason: dict[str, Any] | None) -> None:
        """Put a failed batch's messages back, each to be handled alone."""
        members = self._batches.pop(tag, ())
        self._handed.discard(tag)
        if members:
            logger.warning(
                "batch of %d messages of queue %s failed (%s), they are handled one by one",
                len(members),
                self._held[members[0]].queue,
                (reason or {}).get("reason") or "no reason was given",
                extra={"messages": len(members), "reason": (reason or {}).get("reason")},
            )
        # The last one of a sequence first: each returns to its place, and counts.
        for member in reversed(members):
            taken = self._held[member]
            self._settle_unsure(member, requeue(taken.id, taken.fence))

    def _return_batch(self, tag: str, how: Callable[[Taken], Settlement]) -> None:
        keys: set[SequenceKey] = set()
        for member in self._batches.pop(tag, ()):
            taken = self._held[member]
            key = taken.queue, taken.sequence
            if taken.sequence and key in keys:
                # It returns with the first of its sequence.
                del self._held[member]
                continue
            keys.add(key)
            self._settle_unsure(member, how(taken))

    def _settle_unsure(self, tag: str, settlement: Settlement) -> None:
        self._begun.discard(tag)
        self._handed.discard(tag)
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

    def _next_of(self, key: SequenceKey) -> None:
        """Make the next message of a sequence ready, now that the one before it is done."""
        run = self._runs.get(key)
        if run:
            self._ready.append(run.popleft())
        else:
            self._runs.pop(key, None)

    # ------------------------------------------------------------ exchanging

    def begin_exchange(self) -> SettlementBatch:
        """Return what an exchange has to carry; `accept` or `restore` must follow."""
        with self._lock:
            settlements, self._settlements = self._settlements, []
            unsure, self._unsure = self._unsure, {}
            self._sending = settlements
            return SettlementBatch(settlements, unsure, self._losses)

    def restore(self, batch: SettlementBatch) -> None:
        """Take back what an exchange carried that had no answer: whether it happened is unknown.

        Repeated settlements count nothing, and what was taken without our knowing is given back
        when both sides are compared.
        """
        with self._lock:
            self.must_reconcile = True
            if batch.losses == self._losses:
                self._sending = []
                self._settlements = batch.settlements + self._settlements
                self._unsure = batch.unsure | self._unsure

    def accept(self, batch: SettlementBatch, answer: Exchange) -> bool:
        """Take what an exchange has brought; False where a lease was lost before it did.

        Then what was taken before the loss is with others, and what was taken after it goes back
        when both sides are compared.
        """
        with self._lock:
            if batch.losses != self._losses:
                self.must_reconcile = True
                return False
            revoked, refused = set(answer.revoked), set(answer.refused)
            for key, settled in batch.unsure.items():
                self._go_on(key, settled, revoked, refused)
            runs: dict[SequenceKey, deque[Taken]] = {}
            for taken in answer.taken:
                key = taken.queue, taken.sequence
                if not taken.sequence:
                    self._ready.append(taken)
                elif key in runs:
                    runs[key].append(taken)
                else:
                    runs[key] = self._runs[key] = deque()
                    self._ready.append(taken)
            if answer.is_known:
                self._sending = []
            return True

    def _go_on(
        self, key: SequenceKey, settled: Taken, revoked: set[int], refused: set[int]
    ) -> None:
        run = self._runs.get(key)
        if settled.id in refused:
            # Settled elsewhere, or by an exchange whose answer was lost: then some of the run may
            # be ours still. The same sequence may have been taken again meanwhile.
            if run is not None and all(behind.take == settled.take for behind in run):
                del self._runs[key]
            self.must_reconcile = True
            return
        while run and run[0].id in revoked:
            run.popleft()
        self._next_of(key)

    def reconcile(self, in_flight: Mapping[int, int]) -> None:
        """Give back what the queue says we hold, and we know nothing of.

        Args:
            in_flight: ids of messages, each with the fence of its delivery.
        """
        with self._lock:
            known = {(t.id, t.fence) for t in [*self._held.values(), *self._ready]}
            known |= {(t.id, t.fence) for run in self._runs.values() for t in run}
            known |= {(s.id, s.fence) for s in self._settlements}
            for message_id, fence in in_flight.items():
                if (message_id, fence) not in known:
                    self._add(give_back(message_id, fence))
            self.must_reconcile = False

    def lose(self, losses: int) -> Lost | None:
        """Let go of everything: others have it. What runs will count nothing.

        Args:
            losses: how many there had been when the question was asked that has this answer. Loop
                and thread may both learn of one loss, and in between messages may be taken.

        Returns:
            What is lost; of what was settled, that of an exchange without an answer may have
            counted. None if this loss is known already.
        """
        with self._lock:
            if losses != self._losses:
                return None
            self._losses += 1
            lost = Lost(
                [*self._held.values(), *self._ready, *chain(*self._runs.values())],
                [*self._sending, *self._settlements],
            )
            self._returned |= {*self._held, *self._batches} - self._begun
            self._begun.clear()
            self._handed.clear()
            self._sending = []
            self._ready.clear()
            self._runs.clear()
            self._held.clear()
            self._batches.clear()
            self._settlements.clear()
            self._unsure.clear()
            self.must_reconcile = False
            return lost
