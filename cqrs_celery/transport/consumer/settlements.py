"""The settlements of one consumer that the queue has not confirmed."""

from __future__ import annotations

import time
from typing import NamedTuple

from ...queue.values import Settlement, Taken
from .sequence_runs import SequenceKey


class SettlementBatch(NamedTuple):
    """The settlements that one exchange sends to the queue.

    Attributes:
        settlements: the settlements.
        unsure: the sequences for which the queue must decide about the remaining messages, each
            with its first message, which is among the settled ones.
        losses: how many leases had been lost; an answer from before a loss says nothing about the
            lease after it.
    """

    settlements: list[Settlement]
    unsure: dict[SequenceKey, Taken]
    losses: int


class Settlements:
    """The settlements that the queue has not confirmed. The caller must hold a lock.

    Attributes:
        waiting: the settlements that no exchange carries yet, in their order.
        waiting_since: monotonic time of the first of these; meaningless while nothing waits.
    """

    def __init__(self) -> None:
        self.waiting: list[Settlement] = []
        self.waiting_since = 0.0
        #: the settlements of the exchange under way
        self._sending: list[Settlement] = []
        #: as in `SettlementBatch`, for the waiting settlements
        self._unsure: dict[SequenceKey, Taken] = {}

    def add(self, settlement: Settlement, *, unsure: Taken | None = None) -> None:
        """Add a settlement.

        Args:
            settlement: how the delivery ended.
            unsure: the message, if the queue must decide about the rest of its sequence.
        """
        if not self.waiting:
            self.waiting_since = time.monotonic()
        self.waiting.append(settlement)
        if unsure is not None and unsure.sequence:
            self._unsure[unsure.queue, unsure.sequence] = unsure

    def begin_exchange(self, losses: int) -> SettlementBatch:
        """Return the settlements for an exchange, which counts as under way from now on.

        Args:
            losses: how many leases have been lost so far.
        """
        settlements, self.waiting = self.waiting, []
        unsure, self._unsure = self._unsure, {}
        self._sending = settlements
        return SettlementBatch(settlements, unsure, losses)

    def restore(self, batch: SettlementBatch) -> None:
        """Put the settlements of an exchange that got no answer in front of the waiting ones."""
        self._sending = []
        self.waiting = batch.settlements + self.waiting
        self._unsure = batch.unsure | self._unsure

    def confirm(self) -> None:
        """Forget the settlements of the exchange under way: the queue has confirmed them."""
        self._sending = []

    def remove_all(self) -> list[Settlement]:
        """Remove and return all settlements; those under way come first."""
        lost = [*self._sending, *self.waiting]
        self._sending = []
        self.waiting.clear()
        self._unsure.clear()
        return lost
