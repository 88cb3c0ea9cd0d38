"""What a consumer holds is delivered in order, settled once, and let go of when it is lost."""

from __future__ import annotations

import json

import pytest

from cqrs_celery.queue.values import Exchange, Taken
from cqrs_celery.transport.consumer.deliveries import Hand, tag_of


def taken(message_id: int, sequence: str = "", *, fence: int = 1, tries: int = 0) -> Taken:
    return Taken(message_id, fence, "orders", sequence, 0, tries, b"", b"")


def bring(hand: Hand, *messages: Taken) -> None:
    assert hand.accept(hand.load(), Exchange(is_known=True, taken=messages))


def deliver(hand: Hand) -> list[str]:
    tags = []
    while (one := hand.next_ready()) is not None:
        tags.append(tag_of(one))
    return tags


def settled(hand: Hand) -> list[tuple[str, int]]:
    return [(one.operation, one.id) for one in hand.load().settlements]


@pytest.fixture
def hand() -> Hand:
    return Hand(max_deliveries=3)


def test_of_a_sequence_one_is_delivered_and_the_next_when_that_is_done(hand: Hand) -> None:
    bring(hand, taken(1, "a"), taken(2, "a"), taken(3, "b"), taken(4))
    assert deliver(hand) == ["1.1", "3.1", "4.1"]
    hand.ack("1.1")
    assert deliver(hand) == ["2.1"]
    assert settled(hand) == [("a", 1)]


def test_behind_what_went_back_nothing_is_delivered_until_the_queue_has_answered(
    hand: Hand,
) -> None:
    # given two of a sequence, of which the first goes back
    bring(hand, taken(1, "a"), taken(2, "a"))
    deliver(hand)
    hand.requeue("1.1")
    assert deliver(hand) == []
    # when the queue has taken the other one back with it
    assert hand.accept(hand.load(), Exchange(is_known=True, revoked=(2,)))
    # then there is nothing left of them
    assert deliver(hand) == []
    assert not hand.waits
    # but had it been settled elsewhere, the other one would be ours still
    bring(hand, taken(3, "a"), taken(4, "a"))
    deliver(hand)
    hand.ack("3.1", is_sure=False)
    assert hand.accept(hand.load(), Exchange(is_known=True))
    assert deliver(hand) == ["4.1"]


def test_what_comes_back_too_often_is_a_dead_letter(hand: Hand) -> None:
    bring(hand, taken(1, tries=1), taken(2, tries=2))
    for tag in deliver(hand):
        hand.requeue(tag)
    assert settled(hand) == [("r", 1), ("d", 2)]


def test_an_exchange_without_an_answer_is_repeated_and_both_sides_are_compared(hand: Hand) -> None:
    # given one message that is done, and an exchange that fails, though it has taken another one
    bring(hand, taken(1), taken(2))
    deliver(hand)
    hand.ack("1.1")
    load = hand.load()
    hand.ack("2.1")
    hand.restore(load)
    assert hand.must_reconcile
    # when both sides are compared
    hand.reconcile({2: 1, 3: 2})
    # then what nobody here knows of goes back
    assert settled(hand) == [("a", 1), ("a", 2), ("n", 3)]


def test_a_loss_is_learnt_once_and_tells_what_it_has_cost(hand: Hand) -> None:
    bring(hand, taken(1), taken(2), taken(3, "a"), taken(4, "a"))
    one, two, _ = deliver(hand)
    assert hand.begin(one)
    hand.ack(one)
    hand.load()
    # when loop and thread learn of it
    lost = hand.lose(0)
    assert hand.lose(0) is None
    # then it names what was held, and what an exchange may have told of in time
    assert lost is not None
    assert [taken.id for taken in lost.held] == [2, 3, 4]
    assert [settlement.id for settlement in lost.settled] == [1]
    # and what had not begun does not begin any more, nor is anything settled
    assert not hand.begin(two)
    hand.ack(two)
    assert settled(hand) == []


def test_an_answer_from_before_a_loss_brings_nothing_and_its_failure_nothing_back(
    hand: Hand,
) -> None:
    bring(hand, taken(1))
    hand.ack(*deliver(hand))
    for ends in ("in an answer", "in an error"):
        load = hand.load()
        hand.lose(hand.losses)
        if ends == "in an answer":
            assert not hand.accept(load, Exchange(is_known=True, taken=[taken(2)]))
        else:
            hand.restore(load)
        assert hand.must_reconcile
        assert hand.ready == 0
        assert settled(hand) == []


def test_of_what_is_given_back_nothing_begins_but_what_has_begun_runs_on(hand: Hand) -> None:
    bring(hand, taken(1), taken(2), taken(3), taken(4, "a"), taken(5, "a"))
    first, second, _, _ = deliver(hand)
    assert hand.begin(first)
    hand.return_all(but=[second])
    assert not hand.begin("3.1")
    assert hand.has(first)
    assert hand.has(second)
    assert settled(hand) == [("n", 3), ("n", 4), ("n", 5)]


# ------------------------------------------------------------ dead letters in the log


def message(**headers: str) -> bytes:
    return json.dumps({"headers": headers, "properties": {}}).encode()


def letter(hand: Hand, one: Taken, reason: dict[str, object], log: pytest.LogCaptureFixture) -> str:
    bring(hand, one)
    (tag,) = deliver(hand)
    hand.bury(tag, reason=reason)
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
    hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(17, "shop:Item:42")._replace(payload=message(task="shop.stock.add", id="e-1"))
    assert letter(hand, one, FAILED, caplog) == (
        "message 17 of queue orders became a dead letter: its function failed (builtins.KeyError:"
        " 'shelf'), task shop.stock.add[e-1]. Later commands of its sequence shop:Item:42 go on"
        " without it; a subscription's later events wait for it, unless on_dead_letter is"
        " 'continue'. Look at it with `celery -A <app> cqrs dead-letters show 17`, then retry or"
        " discard it."
    )


def test_a_letter_that_has_no_task_and_no_sequence_says_what_there_is(
    hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(18)._replace(payload=b"\xff", has_letter=True)
    assert letter(hand, one, {"reason": "unreadable envelope"}, caplog) == (
        "message 18 of queue orders became a dead letter again: unreadable envelope. Look at it"
        " with `celery -A <app> cqrs dead-letters show 18`, then retry or discard it."
    )


def test_what_strangers_have_chosen_does_nothing_to_the_terminal(
    hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    one = taken(19, "a\x1b[2J\n")._replace(payload=message(task="t\x1b", id="x" * 1000))
    text = letter(hand, one, {"reason": "r", "error": "e\r" * 1000}, caplog)
    assert text.isprintable()
    assert "sequence a\\x1b[2J\\n go on" in text
    assert len(text) < 2_500


def test_a_message_that_is_delivered_too_often_is_logged_as_a_letter(
    hand: Hand, caplog: pytest.LogCaptureFixture
) -> None:
    bring(hand, taken(20, tries=2))
    (tag,) = deliver(hand)
    hand.requeue(tag, reason={"reason": "its child process was lost"})
    assert caplog.messages[0].startswith(
        "message 20 of queue orders became a dead letter: its child process was lost."
    )
