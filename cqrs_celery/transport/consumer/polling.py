"""When a channel talks to the queue: a round trip costs more than what it carries.

Settling and taking go together in one exchange. It happens at once when the worker would run dry
otherwise, or when somebody woke us, and a little later, with more to carry, while it still has
enough to do. Without a wake-up the queues are polled every `POLL_S`, mostly by one command (see
`queue.polling`), and looked at closely every `LOOK_S`.
"""

from __future__ import annotations

import math

from ...queue.values import Exchange

#: Seconds between two peeks at the queues when nobody wakes us: a lost wake-up costs this much.
POLL_S = 1.0

#: Seconds between two exchanges that only look: they find what no poll has found.
LOOK_S = 30.0

#: Seconds for which a settlement waits for company while the worker has enough to do.
LINGER_S = 0.01


class PollSchedule:
    """When to exchange with the queue, or just to peek at it, by what the last exchanges showed."""

    def __init__(self) -> None:
        #: True while the last take brought something, or somebody has woken us.
        self.should_take = True
        #: True if the queue knows us as waiting for a wake-up.
        self.is_idle = False
        self._next_peek = 0.0
        self._next_look = 0.0
        self._last = 0.0

    def due_at(self, *, credit: int, settled_at: float | None, is_busy: bool) -> float:
        """Return the monotonic time at which to exchange, or to peek, next.

        Args:
            credit: how many messages could be taken.
            settled_at: when the oldest settlement was made that is not sent; None if there is none.
            is_busy: True if the worker has enough to do for a while.
        """
        can_take = credit > 0 and self.should_take
        if settled_at is None and not can_take:
            return min(self._next_peek, self._next_look) if credit > 0 else math.inf
        if not is_busy:
            return 0.0
        return (self._last if settled_at is None else settled_at) + LINGER_S

    def is_peek_enough(self, *, settled_at: float | None, now: float) -> bool:
        """Return whether a peek will do, without an exchange."""
        return settled_at is None and not self.should_take and now < self._next_look

    def note_peek(self, *, has_seen: bool, now: float) -> None:
        """Learn from a peek."""
        self.should_take = has_seen
        self._next_peek = now + POLL_S

    def note(self, answer: Exchange, *, credit: int, now: float) -> None:
        """Learn from an exchange."""
        self._last = now
        if not answer.is_known:
            self.should_take = True
        elif credit > 0:
            self.is_idle = not answer.taken
            self.should_take = bool(answer.taken)
            due_s = LOOK_S if answer.due_in_ms is None else answer.due_in_ms / 1000
            self._next_look = now + min(LOOK_S, due_s)
            self._next_peek = now + POLL_S
