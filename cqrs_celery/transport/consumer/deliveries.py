"""What one consumer has taken, delivered, begun with, settled and not told the queue of yet.

Nothing here talks to the queue. The consumer carries what is settled to it, and its answers back.
Any thread may call anything: tasks end in threads of a pool, the lease has a thread of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from ...queue.values import Exchange, Taken, give_back
from .held_deliveries import HeldDeliveries
from .lease_log import Lost
from .sequence_runs import SequenceKey
from .settlements import SettlementBatch


def tag_of(taken: Taken) -> str:
    """Return the delivery tag: it names the delivery, not only the message."""
    return f"{taken.id}.{taken.fence}"


class Deliveries(HeldDeliveries):
    """The messages that one consumer has taken, and what became of them.

    Args:
        max_deliveries: a message that came back unfinished that often becomes a dead letter.
        on_settled: called when something was settled.
    """

    @property
    def ready(self) -> int:
        """How many messages wait to be delivered."""
        return len(self._ready)

    @property
    def waits(self) -> bool:
        """Whether anything is to be delivered that was not yet, now or when its turn comes."""
        return bool(self._runs or self._ready)

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
            fits: returns whether another one may go along.
            most: how many at most.
            batch: the tag of the delivery, if there are any others.

        Returns:
            The others, those of one sequence in its order; without any, nothing has changed.
        """
        found: list[Taken] = []
        with self._lock:
            self._runs.move_behind(first, fits, most, found)
            passed: list[Taken] = []
            while self._ready and len(found) < most:
                taken = self._ready.popleft()
                if not fits(taken):
                    passed.append(taken)
                    continue
                found.append(taken)
                self._runs.move_behind(taken, fits, most, found)
            self._ready.extendleft(reversed(passed))
            if found:
                for taken in found:
                    self._held[tag_of(taken)] = taken
                self._batches[batch] = tuple(tag_of(taken) for taken in (first, *found))
        return found

    def begin(self, tag: str) -> bool:
        """Return whether a delivery may be begun with; from then on, it counts as running.

        False where its message went back while it waited in the worker: others have it.
        """
        with self._lock:
            if tag in self._returned:
                return False
            self._begun.add(tag)
            return True

    def hand_over(self, tag: str, *, is_begun: bool) -> bool:
        """Return whether a delivery may be given to a pool: not if its message went back meanwhile.

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
            for taken in self._runs.remove(queues):
                self._settlements.add(give_back(taken.id, taken.fence))

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
        self._runs.forget((taken.queue, taken.sequence))
        self._settlements.add(give_back(taken.id, taken.fence))

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
            for taken in self._runs.remove():
                self._settlements.add(give_back(taken.id, taken.fence))

    # ------------------------------------------------------------ exchanging

    def begin_exchange(self) -> SettlementBatch:
        """Return what an exchange has to carry; `accept` or `restore` must follow."""
        with self._lock:
            return self._settlements.begin_exchange(self._losses)

    def restore(self, batch: SettlementBatch) -> None:
        """Take back what an exchange carried that had no answer: whether it happened is unknown.

        Repeated settlements count nothing, and what was taken without our knowing is given back
        when both sides are compared.
        """
        with self._lock:
            self.must_reconcile = True
            if batch.losses == self._losses:
                self._settlements.restore(batch)

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
            self._runs.take(answer.taken)
            if answer.is_known:
                self._settlements.confirm()
            return True

    def _go_on(
        self, key: SequenceKey, settled: Taken, revoked: set[int], refused: set[int]
    ) -> None:
        if settled.id in refused:
            # Settled elsewhere, or by an exchange whose answer was lost: then some of the run may
            # be ours still. The same sequence may have been taken again meanwhile.
            self._runs.drop_of_take(key, settled.take)
            self.must_reconcile = True
            return
        self._runs.advance_past(revoked, key)

    def reconcile(self, in_flight: Mapping[int, int]) -> None:
        """Give back what the queue says we hold, and we know nothing of.

        Args:
            in_flight: ids of messages, each with the fence of its delivery.
        """
        with self._lock:
            known = {(t.id, t.fence) for t in [*self._held.values(), *self._ready]}
            known |= {(t.id, t.fence) for t in self._runs}
            known |= {(s.id, s.fence) for s in self._settlements.waiting}
            for message_id, fence in in_flight.items():
                if (message_id, fence) not in known:
                    self._settlements.add(give_back(message_id, fence))
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
                [*self._held.values(), *self._ready, *self._runs],
                self._settlements.remove_all(),
            )
            self._returned |= {*self._held, *self._batches} - self._begun
            self._begun.clear()
            self._handed.clear()
            self._ready.clear()
            self._runs.clear()
            self._held.clear()
            self._batches.clear()
            self.must_reconcile = False
            return lost
