"""Judge from what this process has itself seen which consumers are dead.

A lease that has ended proves nothing: after an outage of Redis all have, and when its clock was set
forward too. And one that lasts may be that of a dead consumer, if the clock was set back. So a
consumer is dead only if its lease has ended, and was not renewed for a third of a lease and a
little more in which Redis answered here without a gap. That is longer than a living one takes to
renew once Redis answers. If Redis's clock was set meanwhile, which the clock of this machine shows,
nobody is judged until every living consumer has renewed.

Nothing here talks to Redis or asks a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

#: Part of a lease, and the most seconds, that is watched in addition to a third of a lease.
TOLERANCE = 1 / 12
MOST_TOLERANCE_S = 0.5

#: Part of a lease by which the two clocks may differ between two answers. Less harms nobody.
STEP = 1 / 12

#: Part of a lease, and the least seconds, between two answers, or until one comes, that is a gap.
GAP = 1 / 10
LEAST_GAP_S = 1.0

#: Seconds, at least a third of a lease, by which a lease must end later than any could, to be of
#: before the clock was set back.
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
        asked: when it was asked for, in seconds by this machine's clock.
        got: when it was there.
        now_ms: Redis's clock in between.
    """

    asked: float
    got: float
    now_ms: float


class _Watched(NamedTuple):
    end_ms: float
    since: float
    enough_s: float


class LeaseWatch:
    """What one observer has seen of the leases of others.

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
        #: True while leases may be there of before Redis's clock was set back
        self.may_be_beyond = True

    @property
    def is_watching(self) -> bool:
        """Whether a consumer is under suspicion, so that Redis must be asked without a gap."""
        return bool(self._watched)

    def due_at(self) -> float:
        """Return when the first under suspicion may be judged; if none is, when anybody may."""
        first = min((one.since + one.enough_s for one in self._watched.values()), default=0.0)
        return max(first, self._paused_until)

    def note_failure(self) -> None:
        """Note that Redis has not answered: whoever is dead must be watched anew."""
        self._watched.clear()

    def note(self, answer: Answer) -> bool:
        """Note an answer; returns whether Redis's clock was set since the last one."""
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
            answer: when, and at what time of Redis's, the leases were read; noted before.
            leases: those that have ended, and, while `may_be_beyond`, all others.
        """
        # Reading the leases may have taken longer than the answer that was noted.
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
        """Return for how long a lease must not have been renewed."""
        lease_s = max(lease.lease_s, self._lease_s)
        if lease.end_ms < answer.now_ms:
            return lease_s / 3 + self._tolerance_s
        return lease_s * 4 / 3 + self._tolerance_s


def _is_suspect(lease: Lease, now_ms: float) -> bool:
    """Return whether a lease has ended, or ends later than any that was given lately."""
    beyond_s = lease.lease_s + max(BEYOND_S, lease.lease_s / 3)
    return lease.end_ms < now_ms or lease.end_ms > now_ms + beyond_s * 1000
