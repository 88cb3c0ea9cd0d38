"""Dead letters are tried again by themselves, later each time, until their time to live is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.queue.dead_letters import BATCH, LookedAfter
from cqrs_celery.queue.values import LetterPolicy, Taken, ack, bury, requeue
from cqrs_celery.transport.consumer.redriving import look_after
from tests.queues import QueueCase, Worker, leftovers, opened, texts

#: Tried again at the next look, archived an hour after the first death.
QUICK = LetterPolicy("block", 0, 0, 3_600_000, 2)


@pytest.fixture
def queue(redis_url: str) -> Iterator[QueueCase]:
    with opened(redis_url) as case:
        yield case


def fail(queue: QueueCase, anna: Worker, *, run: int = 1) -> list[Taken]:
    """Take what is next, and let it be a letter."""
    taken = anna.take(1, run=run)
    anna.end(bury, taken[:1], '{"reason": "no"}')
    return taken


def deeds(found: list[LookedAfter]) -> list[tuple[str, int]]:
    return [(one.deed, one.waiting) for one in found]


def due_in_ms(queue: QueueCase, message_id: int) -> int:
    """Return the milliseconds from a letter's last death to its next try."""
    (letter,) = (one for one in queue.dead_letters() if one.id == message_id)
    due = queue.redis.zscore(queue.key("redrive"), f"orders\x1f{message_id}")
    return int(due) - letter.died_at_ms


def age(queue: QueueCase, by_ms: int) -> None:
    """Let every letter of the queue have become one that much earlier, and be due now."""
    key = queue.key("dead:orders")
    for field, text in queue.redis.hgetall(key).items():
        parts = text.split(b"\x1f")
        parts[3] = b"%d" % (int(parts[3]) - by_ms)
        queue.redis.hset(key, field, b"\x1f".join(parts))
    for member in queue.redis.zrange(queue.key("redrive"), 0, -1):
        queue.redis.zadd(queue.key("redrive"), {member: 1})


def test_the_waits_double_up_to_the_longest(queue: QueueCase) -> None:
    """The defaults of ACCEPTANCE: first after 5 minutes, at most 60 apart."""
    # given a queue with the default policy, and a message that always fails
    queue.letters.set_policy("orders", LetterPolicy())
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    waits = []
    # when it is tried again and again
    for _ in range(6):
        (taken,) = fail(queue, anna)
        waits.append(due_in_ms(queue, taken.id) // 60_000)
        assert queue.redrive("orders", taken.id)
    # then each wait is twice the one before
    assert waits == [5, 10, 20, 40, 60, 60]


def test_nothing_is_tried_again_before_its_time(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", LetterPolicy())
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    fail(queue, anna)

    assert queue.letters.redrive_due() == []
    assert queue.beat("anna", 1_000).letters_due == 0


def test_a_letter_without_a_policy_waits_for_somebody(queue: QueueCase) -> None:
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    fail(queue, anna)

    assert queue.letters.redrive_due() == []
    assert not queue.redis.exists(queue.key("redrive"))


def test_success_removes_the_letter_and_lets_the_waiting_follow_in_order(queue: QueueCase) -> None:
    """ACCEPTANCE 82."""
    # given a sequence that is held up
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    fail(queue, anna)
    assert queue.beat("anna", 1_000).letters_due == 1
    # when its letter is tried again
    assert deeds(queue.letters.redrive_due()) == [("redriven", 2)]
    assert [letter.state for letter in queue.dead_letters()] == ["tried"]
    taken = anna.take(run=3)
    assert texts(taken) == ["1", "2", "3"]
    assert [one.has_letter for one in taken] == [True, False, False]
    # and succeeds
    anna.end(ack, taken)
    # then nothing is left of it
    assert queue.dead_letters() == []
    assert leftovers(queue.client) == []


def test_failure_counts_and_keeps_the_letter_with_the_last_reason(queue: QueueCase) -> None:
    """ACCEPTANCE 83."""
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"12", sequence="Item-1")
    first = fail(queue, anna)
    (before,) = queue.dead_letters()

    queue.letters.redrive_due()
    anna.end(bury, anna.take(), '{"reason": "still no"}')

    (after,) = queue.dead_letters()
    assert (after.id, after.times, after.why) == (first[0].id, 2, '{"reason": "still no"}')
    assert after.first_died_at_ms == before.first_died_at_ms <= after.died_at_ms
    assert after.state == "dead"
    assert anna.take() == []


def test_one_letter_is_tried_once_at_a_time(queue: QueueCase) -> None:
    # given a letter that is tried again
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    (taken,) = fail(queue, anna)
    queue.letters.redrive_due()
    # when it is in line, and when it is in flight
    for _ in range(2):
        # then nobody else tries it, or deletes it
        assert queue.letters.redrive_due() == []
        assert queue.letters.redrive("orders", taken.id) == "tried"
        assert queue.letters.discard("orders", taken.id) == "tried"
        anna.take()


def test_a_worker_that_dies_while_it_tries_gives_the_message_back(queue: QueueCase) -> None:
    """ACCEPTANCE 87: what is tried again is under a lease like everything else."""
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    fail(queue, anna)
    queue.letters.redrive_due()
    anna.take()

    queue.end_lease("anna")
    queue.recover(most_tries=3)

    berta = queue.worker("berta")
    taken = berta.take()
    assert [(one.tries, one.has_letter) for one in taken] == [(1, True)]
    berta.end(ack, taken)
    assert queue.dead_letters() == []


def test_a_message_that_kills_its_workers_while_it_is_tried_is_a_letter_again(
    queue: QueueCase,
) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    fail(queue, anna)
    queue.letters.redrive_due()
    anna.take()
    queue.end_lease("anna")

    queue.recover(most_tries=1)

    (letter,) = queue.dead_letters()
    assert (letter.times, letter.tries, letter.state) == (2, 1, "dead")


def test_it_is_tried_however_often_it_failed_within_its_time(queue: QueueCase) -> None:
    """ACCEPTANCE 84 and 86: 4,000 failures, and no wait overflows."""
    queue.letters.set_policy("orders", LetterPolicy(most_redrive_ms=3_600_000))
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    (taken,) = fail(queue, anna)
    key, field = queue.key("dead:orders"), str(taken.id)
    parts = queue.redis.hget(key, field).split(b"\x1f")
    parts[4] = b"4000"
    queue.redis.hset(key, field, b"\x1f".join(parts))

    age(queue, 0)
    assert deeds(queue.letters.redrive_due()) == [("redriven", 0)]
    fail(queue, anna)

    assert due_in_ms(queue, taken.id) == 3_600_000


def test_past_its_time_it_is_archived_not_run_and_its_sequence_stays_closed(
    queue: QueueCase,
) -> None:
    """ACCEPTANCE 85."""
    # given a letter that is past its time, with two behind it
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"12", sequence="Item-1")
    queue.send("other", sequence="Item-2")
    (taken, *_) = fail(queue, anna)
    age(queue, 3_600_000)
    # when it is looked after
    assert deeds(queue.letters.redrive_due()) == [("archived", 1)]
    # then it is not run, and what comes behind it waits
    queue.send("3", sequence="Item-1")
    assert "1" not in texts(anna.take())
    assert [letter.state for letter in queue.dead_letters()] == ["archived"]
    # and it alarms again
    age(queue, 0)
    assert deeds(queue.letters.redrive_due()) == [("closed", 2)]
    # until somebody retries it
    assert queue.letters.redrive("orders", taken.id) == "archived"
    assert queue.letters.redrive("orders", taken.id, also_archived=True) == "done"
    assert texts(anna.take(run=3)) == ["1", "2", "3"]


def test_an_archived_letter_that_is_tried_and_fails_begins_a_new_life(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    (taken,) = fail(queue, anna)
    age(queue, 3_600_000)
    queue.letters.redrive_due()

    queue.letters.redrive("orders", taken.id, also_archived=True)
    fail(queue, anna)

    (letter,) = queue.dead_letters()
    assert (letter.times, letter.state) == (1, "dead")
    assert deeds(queue.letters.redrive_due()) == [("redriven", 0)]


def test_a_discarded_archived_letter_lets_the_rest_follow(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"123", sequence="Item-1")
    (taken, *_) = fail(queue, anna)
    age(queue, 3_600_000)
    queue.letters.redrive_due()

    assert queue.discard("orders", taken.id)

    rest = anna.take(run=3)
    assert texts(rest) == ["2", "3"]
    anna.end(ack, rest)
    assert leftovers(queue.client) == []


def test_where_the_policy_says_discard_it_is_deleted_and_its_sequence_goes_on(
    queue: QueueCase,
) -> None:
    queue.letters.set_policy("orders", QUICK._replace(kind="discard"))
    anna = queue.worker()
    queue.send(*"12", sequence="Item-1")
    fail(queue, anna)
    assert anna.take() == []
    age(queue, 3_600_000)

    assert deeds(queue.letters.redrive_due()) == [("discarded", 1)]

    taken = anna.take()
    assert texts(taken) == ["2"]
    anna.end(ack, taken)
    assert leftovers(queue.client) == []


def test_where_the_policy_says_continue_the_sequence_goes_on_without_it(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK._replace(kind="continue"))
    anna = queue.worker()
    queue.send(*"12", sequence="Item-1")
    fail(queue, anna)
    assert texts(anna.take()) == ["2"]

    assert deeds(queue.letters.redrive_due()) == [("redriven", 0)]

    age(queue, 0)
    assert [letter.state for letter in queue.dead_letters()] == ["tried"]


def test_a_letter_that_holds_up_nothing_waits_behind_one_that_does(queue: QueueCase) -> None:
    # given a letter that its sequence went on without, and another one that blocks the sequence
    anna = queue.worker()
    queue.send("1", "2", "3", sequence="Item-1")
    (first,) = fail(queue, anna)
    queue.letters.set_policy("orders", LetterPolicy())
    (second,) = fail(queue, anna)
    # when the first one is tried again
    assert queue.redrive("orders", first.id)
    # then it waits behind the rest, and nothing comes before the one that blocks
    assert anna.take(run=10) == []
    assert queue.redrive("orders", second.id)
    assert texts(anna.take(run=10)) == ["2", "3", "1"]


def test_a_crowd_behind_a_letter_is_told(queue: QueueCase) -> None:
    # given a policy that allows two to wait
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"123", sequence="quiet")
    queue.send(*"1234", sequence="crowded")
    for _ in range(2):
        fail(queue, anna)
    # when the letters are looked after
    found = queue.letters.redrive_due()
    # then the one with more is told
    assert sorted((one.waiting, one.is_crowded) for one in found) == [(2, False), (3, True)]


def test_at_most_so_many_are_looked_after_at_once(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send(*"12345")
    anna.end(bury, anna.take(), "{}")

    counts = [len(queue.letters.redrive_due(2)) for _ in range(4)]

    assert counts == [2, 2, 1, 0]
    assert sorted(texts(anna.take())) == list("12345")


def test_a_purge_takes_what_is_tried_again_with_its_letter(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1", sequence="Item-1")
    queue.send("2")
    for _ in range(2):
        fail(queue, anna)
    queue.letters.redrive_due()

    queue.purge("orders")

    assert leftovers(queue.client) == []


def test_a_requeued_try_counts_and_keeps_the_letter(queue: QueueCase) -> None:
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send("1")
    fail(queue, anna)
    queue.letters.redrive_due()

    anna.end(requeue, anna.take())

    taken = anna.take()
    assert [(one.tries, one.has_letter) for one in taken] == [(1, True)]
    anna.end(ack, taken)
    assert leftovers(queue.client) == []


def test_the_policy_is_what_was_said_last(queue: QueueCase) -> None:
    assert queue.letters.policy("orders") is None

    queue.letters.set_policy("orders", QUICK)
    assert queue.letters.policy("orders") == QUICK

    queue.letters.set_policy("orders", None)
    assert queue.letters.policy("orders") is None


def test_the_queues_with_letters_are_listed(queue: QueueCase) -> None:
    anna = queue.worker("anna", "b*[x]", "a")
    for name in ("b*[x]", "a"):
        queue.send("1", to=name)
    anna.end(bury, anna.take(), "{}")

    assert queue.letters.queues() == ["a", "b*[x]"]


def test_very_many_letters_are_looked_after_in_slices(queue: QueueCase) -> None:
    # given more letters that are due than one call looks after
    queue.letters.set_policy("orders", QUICK)
    anna = queue.worker()
    queue.send_many(2 * BATCH + 1)
    anna.end(bury, anna.take(2 * BATCH + 1), '{"reason": "no"}')
    # when they are looked after
    more = [look_after(queue.letters) for _ in range(3)]
    # then each call has done a slice, and said whether there is more
    assert more == [True, True, False]
    assert len(anna.take(2 * BATCH + 1)) == 2 * BATCH + 1
