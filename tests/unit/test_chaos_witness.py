"""The witness of the chaos run complains of what is wrong, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.post import BOOK, SUBSCRIPTIONS
from tests.chaos.witness import Attempt, Disturbance, Witness
from tests.telling import Said

LEASE_S = 2.0

MAP = "post.map"

#: The processes of two workers, each the group of its only one.
ANNA, BERT = 100, 200


def attempt(
    version: int,
    start: float,
    end: float | None,
    *,
    group: int = ANNA,
    outcome: str = "end",
    retries: int = 0,
    subscription: str = MAP,
    thread: int = 0,
) -> Attempt:
    name = f"{subscription}-{version}-{start}"
    return Attempt(
        name, subscription, "p", version, retries, str(group), group, group, version,
        thread or group, start, end, outcome,
    )  # fmt: skip


def lost(group: int, at: float, *messages: int) -> Said:
    facts = {"messages": list(messages), "settled_too_late": []}
    return Said("lease lost: its messages were given to others", at, group, group, facts)


def judge(*attempts: Attempt, disturbances: Any = (), said: Any = (), events: int = 2,
          poison: int = 0, booked: Any = None) -> str:  # fmt: skip
    """Return what the witness says, where all goes well elsewhere."""
    others = [
        attempt(version, version, version + 0.5, subscription=name)
        for name in SUBSCRIPTIONS
        if name != MAP
        for version in range(1, events + 1)
    ]
    books = [(one.version, one.id) for one in others if one.subscription == BOOK]
    witness = Witness(
        sorted([*attempts, *others], key=lambda one: one.start),
        disturbances,
        said,
        {"p": events},
        {f"{MAP}:p": poison} if poison else {},
        {"p": books if booked is None else booked},
        LEASE_S,
    )
    try:
        witness.judge()
    except AssertionError:
        return ", ".join(sorted(witness.wrong))
    return ""


ONE, TWO = attempt(1, 10, 11), attempt(2, 12, 13)


def test_order_is_right() -> None:
    assert judge(ONE, TWO) == ""


@pytest.mark.parametrize(
    ("attempts", "complaint"),
    [
        ([ONE], "lost"),
        ([attempt(1, 10, 11, outcome="fail"), TWO], "lost, out of order"),
        ([ONE, attempt(2, 10.5, 13)], "out of order, overlap"),
        ([attempt(2, 9, 9.5), ONE], "out of order"),
        ([ONE, attempt(1, 11.5, 11.6), TWO], "repeated without a reason"),
        ([ONE, TWO, attempt(1, 14, 15)], "out of order"),
        ([ONE, attempt(2, 12, None, outcome=""), attempt(2, 20, 21)], "without an end"),
    ],
)
def test_what_no_disturbance_explains_is_wrong(attempts: list[Attempt], complaint: str) -> None:
    assert judge(*attempts) == complaint


def test_a_retry_and_a_redrive_are_reasons_and_a_redrive_takes_its_time() -> None:
    failed = attempt(1, 5, 5.1, outcome="fail")
    dead = attempt(1, 6, 6.1, outcome="fail", retries=1)
    assert judge(failed, dead, attempt(1, 10, 11, retries=1), TWO) == ""
    assert judge(failed, dead, attempt(1, 6.3, 7, retries=1), TWO) == "tried again too early"


def test_a_kill_explains_what_was_open_and_its_processes_must_be_dead_first() -> None:
    kill = [Disturbance("killed", ANNA, 10.5, 10.6, alive=10.5)]
    cut = attempt(1, 10, None, outcome="")
    at_once = attempt(1, 10.55, 10.9, group=BERT)
    assert judge(cut, at_once, TWO, disturbances=kill) == ""
    assert "overlap" in judge(cut, attempt(1, 10.45, 10.9, group=BERT), TWO, disturbances=kill)
    # and an orphan's lease must end first, or its last process
    orphaned = [Disturbance("orphaned", ANNA, 10.5, 12, stopped=10.6, alive=11)]
    assert judge(cut, attempt(1, 11.1, 11.5, group=BERT), TWO, disturbances=orphaned) == ""
    early = attempt(1, 10.9, 11.5, group=BERT)
    complaint = "taken over within the lease"
    assert complaint in judge(cut, early, TWO, disturbances=orphaned)
    # and one that was frozen first lives until it is killed
    frozen = [Disturbance("frozen and killed", ANNA, 10.5, 11.1, stopped=10.6, alive=11)]
    assert complaint in judge(cut, early, TWO, disturbances=frozen)
    # and nothing of another worker, nor what had ended long before
    other = [Disturbance("killed", BERT, 10.5, 10.6)]
    assert "without an end" in judge(cut, attempt(1, 13, 14, group=BERT), disturbances=other)
    again = attempt(1, 16, 17, group=BERT)
    late = [Disturbance("killed", ANNA, 14, 14.1)]
    complaint = "repeated without a reason"
    assert judge(ONE, again, attempt(2, 18, 19), disturbances=late) == complaint


def test_after_a_kill_a_sequence_may_begin_anew_at_what_was_open_but_not_before() -> None:
    kill = [Disturbance("killed", ANNA, 12.5, 12.6)]
    cut = attempt(2, 12, None, outcome="")
    again = [attempt(1, 15, 16, group=BERT), attempt(2, 17, 18, group=BERT)]
    assert judge(attempt(1, 11.8, 11.9), cut, *again, disturbances=kill) == ""
    assert judge(ONE, cut, *again, disturbances=kill) == "out of order"


FREEZE = [Disturbance("frozen", ANNA, 10.5, 15)]


def test_a_frozen_holder_may_go_on_beside_the_next_one_if_its_log_says_that_it_has_lost() -> None:
    attempts = [attempt(1, 10, 16), attempt(1, 13, 14, group=BERT), attempt(2, 14.5, 17)]
    assert judge(*attempts, disturbances=FREEZE, said=[lost(ANNA, 15.1, 1)]) == ""
    # but not without a word
    assert "overlap" in judge(*attempts, disturbances=FREEZE)
    # nor of another message
    assert "overlap" in judge(*attempts, disturbances=FREEZE, said=[lost(ANNA, 15.1, 7)])
    # nor before its lease can have ended
    attempts[1] = attempt(1, 11, 12, group=BERT)
    complaint = judge(*attempts, disturbances=FREEZE, said=[lost(ANNA, 15.1, 1)])
    assert complaint == "taken over within the lease"


def test_what_only_a_late_holder_has_done_is_lost() -> None:
    complaint = judge(
        attempt(1, 10, 16), attempt(2, 17, 18), disturbances=FREEZE, said=[lost(ANNA, 15.1, 1)]
    )
    assert "lost" in complaint


def test_what_ended_before_its_worker_stood_still_may_have_been_settled() -> None:
    said = [lost(ANNA, 15.1, 1)]
    attempts = [attempt(1, 10, 10.52), attempt(2, 14.5, 14.6, group=BERT)]
    slow = [Disturbance("frozen", ANNA, 10.5, 15, stopped=10.55)]
    assert judge(*attempts, disturbances=slow, said=said) == ""
    # but not what ended after it
    quick = [Disturbance("frozen", ANNA, 10.5, 15, stopped=10.51)]
    assert "lost" in judge(*attempts, disturbances=quick, said=said)


def test_a_thawed_worker_begins_nothing_that_it_has_lost() -> None:
    others = [attempt(1, 13, 14, group=BERT), attempt(2, 14.5, 14.6, group=BERT)]
    said = [lost(ANNA, 15.1, 1, 2)]
    frozen = attempt(1, 10, 15.05)
    late = attempt(2, 15.06, 15.07)
    # the second one since the freeze could have known
    begun = attempt(1, 15.01, 15.05)
    complaint = judge(begun, late, *others, disturbances=FREEZE, said=said)
    assert complaint == "begun past its lease"
    # the first one may have been about to begin as it was frozen
    assert judge(frozen, late, *others, disturbances=FREEZE, said=said) == ""
    # in each thread
    late = attempt(2, 15.06, 15.07, thread=ANNA + 1)
    assert judge(begun, late, *others, disturbances=FREEZE, said=said) == ""


def test_a_thawed_worker_may_get_what_it_has_lost_again() -> None:
    said = [lost(ANNA, 15.1, 1, 2)]
    again = [attempt(1, 15.2, 15.3), attempt(2, 15.4, 15.5)]
    assert judge(*again, disturbances=FREEZE, said=said) == ""
    # and fail, and try again
    failed = attempt(1, 15.12, 15.13, outcome="fail")
    again[0] = attempt(1, 15.2, 15.3, retries=1)
    assert judge(failed, *again, disturbances=FREEZE, said=said) == ""


def test_a_thawed_worker_may_get_what_it_has_lost_from_one_that_could_not_do_it() -> None:
    said = [lost(ANNA, 15.1, 1, 2)]
    # that has failed: its retry
    failed = attempt(1, 13, 13.1, group=BERT, outcome="fail")
    retried = attempt(1, 15.2, 15.3, retries=1)
    then = attempt(2, 15.4, 15.5)
    assert judge(failed, retried, then, disturbances=FREEZE, said=said) == ""
    # that has failed for the last time: its redrive
    dead = attempt(1, 13.5, 13.6, group=BERT, outcome="fail", retries=1)
    assert judge(failed, dead, retried, then, disturbances=FREEZE, said=said) == ""
    # that was killed: its message
    killed = [*FREEZE, Disturbance("child killed", BERT, 14.9, 14.95, BERT)]
    cut = attempt(1, 14.8, None, group=BERT, outcome="")
    back = attempt(1, 15.2, 15.3)
    assert judge(cut, back, then, disturbances=killed, said=said) == ""
    # but what was about to begin as it was frozen counts nothing
    done = attempt(1, 15.25, 15.3, group=BERT, retries=1)
    stale = attempt(1, 15.01, 15.2)
    assert judge(failed, stale, done, then, disturbances=FREEZE, said=said) == ""
    assert "lost" in judge(failed, stale, then, disturbances=FREEZE, said=said)


def test_a_lease_is_lost_by_a_freeze_alone() -> None:
    complaint = "lease lost without a freeze"
    assert complaint in judge(ONE, TWO, said=[lost(ANNA, 15.1, 7)])
    assert complaint in judge(ONE, TWO, said=[lost(BERT, 15.1, 7)], disturbances=FREEZE)


def test_commits_are_each_event_once_in_order() -> None:
    one, two = (f"{BOOK}-{version}-{version}" for version in (1, 2))
    for booked in ([(1, one)], [(2, two), (1, one)], [(1, one), (1, one), (2, two)]):
        assert judge(ONE, TWO, booked=booked) == "commits"


def test_a_dead_letter_holds_up_what_is_behind_it() -> None:
    tries = [attempt(1, 5, 6, outcome="fail"), attempt(1, 7, 8, outcome="fail", retries=1)]
    assert judge(*tries, poison=1) == ""
    assert "ran behind a dead letter" in judge(*tries, TWO, poison=1)
    assert "poison passed" in judge(*tries, ONE, poison=1)
    assert judge(tries[0], poison=1) == "never a dead letter"
