"""Track the messages that one consumer has taken, delivered, begun and settled.

Nothing here accesses the queue: the consumer sends the settlements, and passes the answers back.
Every method may be called from any thread: tasks end in threads of a pool, and the lease has a
thread of its own.
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
    """The messages that one consumer has taken, and their states.

    Args:
        max_deliveries: a message that came back unfinished this often becomes a dead letter.
        on_settled: called when a delivery was settled.
    """

    @property
    def ready(self) -> int:
        """The number of messages that can be delivered now."""
        return len(self._ready)

    @property
    def waits(self) -> bool:
        """Whether any message is still to be delivered, now or when its turn comes."""
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
        """Join a held message and others, ready or behind one of them, into one delivery.

        Of a sequence, only messages that follow each other are joined.

        Args:
            first: the message, held already.
            fits: returns whether another message may be joined.
            most: the most other messages.
            batch: the tag of the delivery, if there are other messages.

        Returns:
            The other messages, those of one sequence in its order. If it is empty, nothing has
            changed.
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
        """Return whether a delivery may begin; from then on, it counts as running.

        The answer is False if its message went back while it waited in the worker: another consumer
        may have it.

        Args:
            tag: the delivery's.
        """
        with self._lock:
            if tag in self._returned:
                return False
            self._begun.add(tag)
            return True

    def hand_over(self, tag: str, *, is_begun: bool) -> bool:
        """Return whether a delivery may go to a pool; False if its message went back meanwhile.

        Args:
            tag: the delivery's.
            is_begun: True if the pool does not call `begin`, so that the delivery begins now.
        """
        with self._lock:
            if tag in self._returned:
                self._returned.discard(tag)
                return False
            if is_begun and (tag in self._held or tag in self._batches):
                self._handed.add(tag)
            return True

    def return_ready(self) -> set[str]:
        """Give back the ready messages, which can't be delivered now; return their queues."""
        queues = set()
        with self._lock:
            while self._ready:
                taken = self._ready.popleft()
                queues.add(taken.queue)
                self._give_back_sequence(taken)
        return queues

    def return_others(self, queues: Collection[str]) -> None:
        """Give back the undelivered messages of all but these queues."""
        with self._lock:
            gone = [taken for taken in self._ready if taken.queue not in queues]
            for taken in gone:
                self._ready.remove(taken)
                self._give_back_sequence(taken)

    def return_undelivered(self, queues: Collection[str]) -> None:
        """Give back the undelivered messages of these queues, including those behind others."""
        with self._lock:
            for taken in [taken for taken in self._ready if taken.queue in queues]:
                self._ready.remove(taken)
                self._give_back_sequence(taken)
            for taken in self._runs.remove(queues):
                self._settlements.add(give_back(taken.id, taken.fence))

    @property
    def has_unbegun(self) -> bool:
        """Whether any held message has not begun."""
        return self.waits or len(self._held) > len(self._begun) + len(self._handed)

    def returned_unbegun(self) -> list[str]:
        """Return the tags of the deliveries that `return_unbegun` gave back since the last call."""
        with self._lock:
            tags, self._unbegun = self._unbegun, []
            return tags

    def return_unbegun(self, queues: Collection[str]) -> None:
        """Give back the deliveries of these queues that neither began nor went to a pool."""
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
        """Give back an undelivered message; the queue takes back the messages behind it."""
        self._runs.forget((taken.queue, taken.sequence))
        self._settlements.add(give_back(taken.id, taken.fence))

    def return_all(self, *, but: Collection[str]) -> None:
        """Give back everything that this process has not begun.

        Args:
            but: the tags of deliveries whose tasks still run.
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
        """Return the settlements for an exchange; `accept` or `restore` must be called after it."""
        with self._lock:
            return self._settlements.begin_exchange(self._losses)

    def restore(self, batch: SettlementBatch) -> None:
        """Take back the settlements of an exchange without an answer: it may have happened or not.

        Repeated settlements are ignored. Messages that the exchange took unnoticed are given back
        by `reconcile`.

        Args:
            batch: what the exchange carried.
        """
        with self._lock:
            self.must_reconcile = True
            if batch.losses == self._losses:
                self._settlements.restore(batch)

    def accept(self, batch: SettlementBatch, answer: Exchange) -> bool:
        """Accept the answer to an exchange; return False if a lease was lost before it came.

        In that case, messages taken before the loss are with other consumers, and messages taken
        after it are given back by `reconcile`.

        Args:
            batch: what the exchange carried.
            answer: the queue's answer.
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
            # Settled elsewhere, or by an exchange whose answer was lost: then this consumer may
            # still hold some of the run. The sequence may have been taken again meanwhile.
            self._runs.drop_of_take(key, settled.take)
            self.must_reconcile = True
            return
        self._runs.advance_past(revoked, key)

    def reconcile(self, in_flight: Mapping[int, int]) -> None:
        """Give back the messages that only the queue counts as held by this consumer.

        Args:
            in_flight: the ids of all messages that this consumer holds by the queue's records, each
                with the fence of its delivery.
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
        """Drop everything, since other consumers have it; what still runs will not count.

        Args:
            losses: how many losses there had been when the question with this answer was sent. Both
                the loop and the thread may learn of one loss, and messages may be taken in between.

        Returns:
            What is lost; settlements that an unanswered exchange carried may have counted. None if
            this loss is known already.
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
