"""Decide when a channel exchanges with the queue: a round trip costs more than its contents.

One exchange both settles and takes. It happens at once if the worker would run out of work
otherwise, or if it was woken. While the worker has enough to do, the exchange happens a little
later, so that it carries more. Without a wake-up, the queues are polled every `POLL_S`, mostly by
one command (see `queue.polling`), and a full exchange follows every `LOOK_S`.
"""

from __future__ import annotations

import math

from ...queue.values import Exchange

#: Seconds between two polls of the queues without a wake-up: a lost wake-up costs this much.
POLL_S = 1.0

#: Seconds between two exchanges of an idle channel; they find what no poll has found.
LOOK_S = 30.0

#: Seconds for which a settlement waits for others while the worker has enough to do.
LINGER_S = 0.01


class PollSchedule:
    """The times of a channel's exchanges and polls, by the results of the last ones."""

    def __init__(self) -> None:
        #: True if the last take brought something, or a wake-up has come since.
        self.should_take = True
        #: True if the queue has registered this consumer as waiting for a wake-up.
        self.is_idle = False
        self._next_peek = 0.0
        self._next_look = 0.0
        self._last = 0.0

    def due_at(self, *, credit: int, settled_at: float | None, is_busy: bool) -> float:
        """Return the monotonic time of the next exchange or poll.

        Args:
            credit: how many messages could be taken.
            settled_at: monotonic time of the oldest settlement that was not sent; None if there is
                none.
            is_busy: True if the worker has enough to do for a while.
        """
        can_take = credit > 0 and self.should_take
        if settled_at is None and not can_take:
            return min(self._next_peek, self._next_look) if credit > 0 else math.inf
        if not is_busy:
            return 0.0
        return (self._last if settled_at is None else settled_at) + LINGER_S

    def is_peek_enough(self, *, settled_at: float | None, now: float) -> bool:
        """Return whether a poll is enough, without an exchange.

        Args:
            settled_at: monotonic time of the oldest settlement that was not sent; None if there is
                none.
            now: the monotonic time.
        """
        return settled_at is None and not self.should_take and now < self._next_look

    def note_peek(self, *, has_seen: bool, now: float) -> None:
        """Note the result of a poll.

        Args:
            has_seen: whether a take may bring something.
            now: the monotonic time.
        """
        self.should_take = has_seen
        self._next_peek = now + POLL_S

    def note(self, answer: Exchange, *, credit: int, now: float) -> None:
        """Note the result of an exchange.

        Args:
            answer: the queue's answer.
            credit: how many messages could have been taken.
            now: the monotonic time.
        """
        self._last = now
        if not answer.is_known:
            self.should_take = True
        elif credit > 0:
            self.is_idle = not answer.taken
            self.should_take = bool(answer.taken)
            due_s = LOOK_S if answer.due_in_ms is None else answer.due_in_ms / 1000
            self._next_look = now + min(LOOK_S, due_s)
            self._next_peek = now + POLL_S
