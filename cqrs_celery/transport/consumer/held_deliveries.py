"""The deliveries that one consumer holds, and their settlement."""

from __future__ import annotations

import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from ...queue.values import Settlement, Taken, ack, bury, give_back, later, requeue
from .letter_log import log_letter
from .sequence_runs import SequenceKey, SequenceRuns
from .settlements import Settlements

logger = logging.getLogger(__name__)


class HeldDeliveries:
    """Deliveries and their settlements; `Deliveries` adds the exchange with the queue.

    Args:
        max_deliveries: a message that came back unfinished this often becomes a dead letter.
        on_settled: called when a delivery was settled.
    """

    def __init__(
        self, *, max_deliveries: int, on_settled: Callable[[], None] | None = None
    ) -> None:
        self.max_deliveries = max_deliveries
        self.on_settled = on_settled
        #: True if the queue may have given this consumer messages that it does not know of
        self.must_reconcile = False
        self._lock = threading.RLock()
        self._held: dict[str, Taken] = {}
        self._ready: deque[Taken] = deque()
        self._runs = SequenceRuns(self._ready)
        self._settlements = Settlements()
        #: tags of deliveries that have begun
        self._begun: set[str] = set()
        #: tags of deliveries that went to a pool which does not report their beginning
        self._handed: set[str] = set()
        #: tags of deliveries of paused queues that went back, and whose credit the channel has not
        #: got back yet
        self._unbegun: list[str] = []
        #: tags of deliveries that may not begin any more: their messages went back while they
        #: waited in the worker
        self._returned: set[str] = set()
        #: the tag of each batch, with those of its messages in their order
        self._batches: dict[str, tuple[str, ...]] = {}
        self._losses = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def settled_at(self) -> float | None:
        """Monotonic time of the oldest settlement that was not sent; None if there is none."""
        return self._settlements.waiting_since if self._settlements.waiting else None

    @property
    def losses(self) -> int:
        """The number of leases that were lost."""
        return self._losses

    def has(self, tag: str) -> bool:
        """Return whether a delivery is neither settled nor lost."""
        return tag in self._held

    def drop(self, tag: str) -> None:
        """Forget a delivery that the queue has settled by itself."""
        with self._lock:
            self._held.pop(tag, None)

    def ack(self, tag: str, *, is_sure: bool = True) -> None:
        """Settle a delivery as done; the next message of its sequence becomes ready at once.

        Args:
            tag: the delivery's.
            is_sure: False if the delivery may have been settled elsewhere; then the next message
                waits until the queue has answered.
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
                self._settlements.add(ack(taken.id, taken.fence))
                if taken.sequence:
                    self._runs.advance((taken.queue, taken.sequence))
        self._tell()

    def requeue(self, tag: str, *, reason: dict[str, Any] | None = None) -> None:
        """Put a delivery back in its place, or make it a dead letter after `max_deliveries`.

        Args:
            tag: the delivery's.
            reason: plain values for the dead letter, if it becomes one.
        """
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
        """Put a delivery that was not started back in its place; it is not counted."""
        with self._lock:
            self._return_batch(tag, lambda taken: give_back(taken.id, taken.fence))
            taken = self._held.get(tag)
            if taken is not None:
                self._settle_unsure(tag, give_back(taken.id, taken.fence))
        self._tell()

    def later(self, tag: str, delay_s: float) -> None:
        """Deliver a message again after a delay; its sequence waits.

        Args:
            tag: the delivery's.
            delay_s: seconds from now.
        """
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
            reason: plain values for whoever reads the letter; the key `reason` has it in words.
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
            self._settlements.add(ack(taken.id, taken.fence))
            if taken.sequence:
                keys[taken.queue, taken.sequence] = None
        for key in keys:
            self._runs.advance(key)

    def _split(self, tag: str, reason: dict[str, Any] | None) -> None:
        """Put a failed batch's messages back, so that each is handled alone."""
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
        # The last message of a sequence first: each returns to its place, and is counted.
        for member in reversed(members):
            taken = self._held[member]
            self._settle_unsure(member, requeue(taken.id, taken.fence))

    def _return_batch(self, tag: str, how: Callable[[Taken], Settlement]) -> None:
        keys: set[SequenceKey] = set()
        for member in self._batches.pop(tag, ()):
            taken = self._held[member]
            key = taken.queue, taken.sequence
            if taken.sequence and key in keys:
                # It returns with the first message of its sequence.
                del self._held[member]
                continue
            keys.add(key)
            self._settle_unsure(member, how(taken))

    def _settle_unsure(self, tag: str, settlement: Settlement) -> None:
        self._begun.discard(tag)
        self._handed.discard(tag)
        self._settlements.add(settlement, unsure=self._held.pop(tag))

    def _tell(self) -> None:
        if self.on_settled is not None:
            self.on_settled()
