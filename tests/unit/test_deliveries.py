"""What a consumer holds is delivered in order, settled once, and let go of when it is lost."""

from __future__ import annotations

import json

import pytest

from cqrs_celery.queue.values import Exchange, Taken
from cqrs_celery.transport.consumer.deliveries import Deliveries, tag_of


def taken(message_id: int, sequence: str = "", *, fence: int = 1, tries: int = 0) -> Taken:
    return Taken(message_id, fence, "orders", sequence, 0, tries, b"", b"")


def bring(deliveries: Deliveries, *messages: Taken) -> None:
    assert deliveries.accept(deliveries.begin_exchange(), Exchange(is_known=True, taken=messages))


def deliver(deliveries: Deliveries) -> list[str]:
    tags = []
    while (one := deliveries.next_ready()) is not None:
        tags.append(tag_of(one))
    return tags


def settled(deliveries: Deliveries) -> list[tuple[str, int]]:
    return [(one.operation, one.id) for one in deliveries.begin_exchange().settlements]


@pytest.fixture
def deliveries() -> Deliveries:
    return Deliveries(max_deliveries=3)


def test_of_a_sequence_one_is_delivered_and_the_next_when_that_is_done(
    deliveries: Deliveries,
) -> None:
    bring(deliveries, taken(1, "a"), taken(2, "a"), taken(3, "b"), taken(4))
    assert deliver(deliveries) == ["1.1", "3.1", "4.1"]
    deliveries.ack("1.1")
    assert deliver(deliveries) == ["2.1"]
    assert settled(deliveries) == [("a", 1)]


def test_behind_what_went_back_nothing_is_delivered_until_the_queue_has_answered(
    deliveries: Deliveries,
) -> None:
    # given two of a sequence, of which the first goes back
    bring(deliveries, taken(1, "a"), taken(2, "a"))
    deliver(deliveries)
    deliveries.requeue("1.1")
    assert deliver(deliveries) == []
    # when the queue has taken the other one back with it
    assert deliveries.accept(deliveries.begin_exchange(), Exchange(is_known=True, revoked=(2,)))
    # then there is nothing left of them
    assert deliver(deliveries) == []
    assert not deliveries.waits
    # but had it been settled elsewhere, the other one would be ours still
    bring(deliveries, taken(3, "a"), taken(4, "a"))
    deliver(deliveries)
    deliveries.ack("3.1", is_sure=False)
    assert deliveries.accept(deliveries.begin_exchange(), Exchange(is_known=True))
    assert deliver(deliveries) == ["4.1"]


def test_what_comes_back_too_often_is_a_dead_letter(deliveries: Deliveries) -> None:
    bring(deliveries, taken(1, tries=1), taken(2, tries=2))
    for tag in deliver(deliveries):
        deliveries.requeue(tag)
    assert settled(deliveries) == [("r", 1), ("d", 2)]


def test_an_exchange_without_an_answer_is_repeated_and_both_sides_are_compared(
    deliveries: Deliveries,
) -> None:
    # given one message that is done, and an exchange that fails, though it has taken another one
    bring(deliveries, taken(1), taken(2))
    deliver(deliveries)
    deliveries.ack("1.1")
    batch = deliveries.begin_exchange()
    deliveries.ack("2.1")
    deliveries.restore(batch)
    assert deliveries.must_reconcile
    # when both sides are compared
    deliveries.reconcile({2: 1, 3: 2})
    # then what nobody here knows of goes back
    assert settled(deliveries) == [("a", 1), ("a", 2), ("n", 3)]


def test_a_loss_is_learnt_once_and_tells_what_it_has_cost(deliveries: Deliveries) -> None:
    bring(deliveries, taken(1), taken(2), taken(3, "a"), taken(4, "a"))
    one, two, _ = deliver(deliveries)
    assert deliveries.begin(one)
    deliveries.ack(one)
    deliveries.begin_exchange()
    # when loop and thread learn of it
    lost = deliveries.lose(0)
    assert deliveries.lose(0) is None
    # then it names what was held, and what an exchange may have told of in time
    assert lost is not None
    assert [taken.id for taken in lost.held] == [2, 3, 4]
    assert [settlement.id for settlement in lost.settled] == [1]
    # and what had not begun does not begin any more, nor is anything settled
    assert not deliveries.begin(two)
    deliveries.ack(two)
    assert settled(deliveries) == []


def test_an_answer_from_before_a_loss_brings_nothing_and_its_failure_nothing_back(
    deliveries: Deliveries,
) -> None:
    bring(deliveries, taken(1))
    deliveries.ack(*deliver(deliveries))
    for ends in ("in an answer", "in an error"):
        batch = deliveries.begin_exchange()
        deliveries.lose(deliveries.losses)
        if ends == "in an answer":
            assert not deliveries.accept(batch, Exchange(is_known=True, taken=[taken(2)]))
        else:
            deliveries.restore(batch)
        assert deliveries.must_reconcile
        assert deliveries.ready == 0
        assert settled(deliveries) == []


def test_of_what_is_given_back_nothing_begins_but_what_has_begun_runs_on(
    deliveries: Deliveries,
) -> None:
    bring(deliveries, taken(1), taken(2), taken(3), taken(4, "a"), taken(5, "a"))
    first, second, _, _ = deliver(deliveries)
    assert deliveries.begin(first)
    deliveries.return_all(but=[second])
    assert not deliveries.begin("3.1")
    assert deliveries.has(first)
    assert deliveries.has(second)
    assert settled(deliveries) == [("n", 3), ("n", 4), ("n", 5)]


# ------------------------------------------------------------ dead letters in the log


def message(**headers: str) -> bytes:
    return json.dumps({"headers": headers, "properties": {}}).encode()


def letter(
    deliveries: Deliveries, one: Taken, reason: dict[str, object], log: pytest.LogCaptureFixture
) -> str:
    bring(deliveries, one)
    (tag,) = deliver(deliveries)
    deliveries.bury(tag, reason=reason)
    (record,) = log.records
    assert record.levelname == "ERROR"
    assert record.name == "cqrs_celery.transport.consumer.letter_log"
    return record.getMessage()


FAILED: dict[str, object] = {
    "reason": "its function failed",
    "exception": "builtins.KeyError",
    "error": "'shelf'",
}


def test_a_dead_letter_is_an_error_in_the_log_that_says_which_why_and_what_to_do(
    deliveries: Deliveries, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(17, "shop:Item:42")._replace(payload=message(task="shop.stock.add", id="e-1"))
    assert letter(deliveries, one, FAILED, caplog) == (
        "message 17 of queue orders became a dead letter: its function failed (builtins.KeyError:"
        " 'shelf'), task shop.stock.add[e-1]. Later commands of its sequence shop:Item:42 go on"
        " without it; a subscription's later events wait for it, unless on_dead_letter is"
        " 'continue'. Look at it with `celery -A <app> cqrs dead-letters show 17`, then retry or"
        " discard it."
    )


def test_a_letter_that_has_no_task_and_no_sequence_says_what_there_is(
    deliveries: Deliveries, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(18)._replace(payload=b"\xff", has_letter=True)
    assert letter(deliveries, one, {"reason": "unreadable envelope"}, caplog) == (
        "message 18 of queue orders became a dead letter again: unreadable envelope. Look at it"
        " with `celery -A <app> cqrs dead-letters show 18`, then retry or discard it."
    )


def test_what_strangers_have_chosen_does_nothing_to_the_terminal(
    deliveries: Deliveries, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(19, "a\x1b[2J\n")._replace(payload=message(task="t\x1b", id="x" * 1000))
    text = letter(deliveries, one, {"reason": "r", "error": "e\r" * 1000}, caplog)
    assert text.isprintable()
    assert "sequence a\\x1b[2J\\n go on" in text
    assert len(text) < 2_500


def test_a_message_that_is_delivered_too_often_is_logged_as_a_letter(
    deliveries: Deliveries, caplog: pytest.LogCaptureFixture
) -> None:
    bring(deliveries, taken(20, tries=2))
    (tag,) = deliver(deliveries)
    deliveries.requeue(tag, reason={"reason": "its child process was lost"})
    assert caplog.messages[0].startswith(
        "message 20 of queue orders became a dead letter: its child process was lost."
    )
