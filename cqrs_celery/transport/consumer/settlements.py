"""The settlements of one consumer on their way to the queue."""

from __future__ import annotations

import time
from typing import NamedTuple

from ...queue.values import Settlement, Taken
from .sequence_runs import SequenceKey


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


class Settlements:
    """What was settled and is not confirmed by the queue. Whoever calls holds a lock.

    Attributes:
        waiting: what no exchange carries yet, in the order of settlement.
        waiting_since: when the first of these was settled, by the monotonic clock; of no meaning
            while nothing waits.
    """

    def __init__(self) -> None:
        self.waiting: list[Settlement] = []
        self.waiting_since = 0.0
        #: those of the exchange that is under way
        self._sending: list[Settlement] = []
        #: as in `SettlementBatch`, of what waits
        self._unsure: dict[SequenceKey, Taken] = {}

    def add(self, settlement: Settlement, *, unsure: Taken | None = None) -> None:
        """Add a settlement.

        Args:
            settlement: what became of a delivery.
            unsure: the message, if the queue must say what becomes of the rest of its sequence.
        """
        if not self.waiting:
            self.waiting_since = time.monotonic()
        self.waiting.append(settlement)
        if unsure is not None and unsure.sequence:
            self._unsure[unsure.queue, unsure.sequence] = unsure

    def begin_exchange(self, losses: int) -> SettlementBatch:
        """Return what an exchange has to carry, and regard it as under way.

        Args:
            losses: how many leases were lost so far.
        """
        settlements, self.waiting = self.waiting, []
        unsure, self._unsure = self._unsure, {}
        self._sending = settlements
        return SettlementBatch(settlements, unsure, losses)

    def restore(self, batch: SettlementBatch) -> None:
        """Put what an exchange carried, and had no answer to, in front of what waits."""
        self._sending = []
        self.waiting = batch.settlements + self.waiting
        self._unsure = batch.unsure | self._unsure

    def confirm(self) -> None:
        """Forget what the exchange under way has carried: the queue knows it."""
        self._sending = []

    def remove_all(self) -> list[Settlement]:
        """Forget everything, and return it; what is under way comes first."""
        lost = [*self._sending, *self.waiting]
        self._sending = []
        self.waiting.clear()
        self._unsure.clear()
        return lost
