"""Decide which consumers are dead, from what this process has seen itself.

A lease that has ended proves nothing: after an outage of Redis all leases have ended, and likewise
if its clock was set forward. If its clock was set back, a dead consumer's lease may still seem
valid. So a consumer is dead only if its lease has ended, and was not renewed for a little more than
a third of a lease during which Redis answered this process without a gap. A living consumer needs
less time to renew once Redis answers. If Redis's clock was set meanwhile, which this machine's
clock shows, no consumer is judged until every living one has renewed.

Nothing here accesses Redis or reads a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: The time watched in addition to a third of a lease: a part of a lease, and the most seconds.
TOLERANCE = 1 / 12
MOST_TOLERANCE_S = 0.5

#: The part of a lease by which the two clocks may diverge between two answers. Less is harmless.
STEP = 1 / 12

#: The time between two answers, or until an answer comes, that counts as a gap: a part of a lease,
#: and the least seconds.
GAP = 1 / 10
LEAST_GAP_S = 1.0

#: A lease that ends later than any lease could, by this many seconds and a third of a lease at
#: least, was given before the clock was set back.
BEYOND_S = 5.0


class Lease(NamedTuple):
    """A consumer's lease as it was read.

    Attributes:
        end_ms: its end, by Redis's clock.
        lease_s: how long the consumer's leases last.
    """

    end_ms: float
    lease_s: float


class Answer(NamedTuple):
    """One answer of Redis that tells its time.

    Attributes:
        asked: when the question was sent, in seconds of this machine's clock.
        got: when the answer came, by the same clock.
        now_ms: Redis's clock in between, in milliseconds.
    """

    asked: float
    got: float
    now_ms: float


class _Watched(NamedTuple):
    end_ms: float
    since: float
    enough_s: float


class LeaseWatch:
    """One observer's record of the leases of other consumers.

    Args:
        lease_s: seconds that the observer's own lease lasts.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._tolerance_s = min(MOST_TOLERANCE_S, lease_s * TOLERANCE)
        self._gap_s = max(LEAST_GAP_S, lease_s * GAP)
        self._last: Answer | None = None
        self._watched: dict[str, _Watched] = {}
        self._paused_until = 0.0
        #: True while there may be leases from before Redis's clock was set back
        self.may_be_beyond = True

    @property
    def is_watching(self) -> bool:
        """Whether a consumer is suspected to be dead, so that Redis must be asked without a gap."""
        return bool(self._watched)

    def due_at(self) -> float:
        """Return when the first suspect may be judged; without suspects, when any consumer may."""
        first = min((one.since + one.enough_s for one in self._watched.values()), default=0.0)
        return max(first, self._paused_until)

    def note_failure(self) -> None:
        """Note that Redis has not answered: every suspect must be watched from the beginning."""
        self._watched.clear()

    def note(self, answer: Answer) -> bool:
        """Note an answer; return whether Redis's clock was set since the last one."""
        last, self._last = self._last, answer
        if last is None:
            return False
        if answer.asked - last.got > self._gap_s or self._is_late(answer):
            self._watched.clear()
        passed_s = (answer.now_ms - last.now_ms) / 1000
        least_s, most_s = answer.asked - last.got, answer.got - last.asked
        if least_s - self._lease_s * STEP <= passed_s <= most_s + self._lease_s * STEP:
            return False
        self._watched.clear()
        self._paused_until = answer.got + self._lease_s
        self.may_be_beyond = True
        return True

    def judge(self, answer: Answer, leases: Mapping[str, Lease]) -> dict[str, float]:
        """Return the consumers that are dead, each with the end of its lease.

        Args:
            answer: when the leases were read, and Redis's clock then; it was given to `note`
                before.
            leases: the leases that have ended; while `may_be_beyond`, all leases.
        """
        # Reading the leases may have taken longer than the noted answer.
        before, self._watched = {} if self._is_late(answer) else self._watched, {}
        is_paused = answer.asked < self._paused_until
        suspects = {name: one for name, one in leases.items() if _is_suspect(one, answer.now_ms)}
        self.may_be_beyond = self.may_be_beyond and (
            is_paused or any(one.end_ms > answer.now_ms for one in suspects.values())
        )
        dead: dict[str, float] = {}
        for consumer, lease in suspects.items():
            seen = before.get(consumer)
            enough_s = self._enough_s(answer, lease)
            if seen is None or seen.end_ms != lease.end_ms:
                seen = _Watched(lease.end_ms, answer.got, enough_s)
            if answer.asked - seen.since >= enough_s and not is_paused:
                dead[consumer] = lease.end_ms
            else:
                self._watched[consumer] = seen._replace(enough_s=enough_s)
        return dead

    def _is_late(self, answer: Answer) -> bool:
        return answer.got - answer.asked > self._gap_s

    def _enough_s(self, answer: Answer, lease: Lease) -> float:
        """Return for how many seconds a lease must not have been renewed."""
        lease_s = max(lease.lease_s, self._lease_s)
        if lease.end_ms < answer.now_ms:
            return lease_s / 3 + self._tolerance_s
        return lease_s * 4 / 3 + self._tolerance_s


def _is_suspect(lease: Lease, now_ms: float) -> bool:
    """Return whether a lease has ended, or ends later than any recent lease can."""
    beyond_s = lease.lease_s + max(BEYOND_S, lease.lease_s / 3)
    return lease.end_ms < now_ms or lease.end_ms > now_ms + beyond_s * 1000
