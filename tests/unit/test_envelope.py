"""How messages lie in the queue, and how they are read again."""

from __future__ import annotations

import base64
import json
from uuid import UUID

import pytest

from cqrs_celery.queue.values import Taken
from cqrs_celery.transport import envelope

MESSAGE = {
    "body": '{"naïve": "🔩"}',
    "content-type": "application/json",
    "content-encoding": "utf-8",
    "headers": {"id": "1", "task": "t"},
    "properties": {"correlation_id": "1", "delivery_info": {"exchange": "", "routing_key": "q"}},
}


def taken(payload: bytes, body: bytes = b"", tries: int = 0) -> Taken:
    return Taken(7, 3, "q", "", 0, tries, payload, body)


def test_a_message_is_read_as_it_was_written() -> None:
    # given
    payload = envelope.joined(envelope.head_of(MESSAGE), envelope.body_of(MESSAGE))
    # when
    read = envelope.decode(taken(payload), "7.3", "worker")
    # then
    assert read["body"].decode() == MESSAGE["body"]
    assert read["headers"] == MESSAGE["headers"]
    assert read["properties"]["delivery_tag"] == "7.3"
    info = read["properties"]["delivery_info"]
    assert info["cqrs_lease"] == ("worker", 7, 3)
    assert not info["redelivered"]


def test_ids_that_were_given_as_uuids_are_read_as_texts() -> None:
    # given a task whose sender has made its id by uuid4()
    one = UUID(int=1)
    sent = {
        **MESSAGE,
        "headers": {"id": one, "root_id": one, "parent_id": None, "group": one, "task": "t"},
        "properties": {"correlation_id": one},
    }
    payload = envelope.joined(envelope.head_of(sent), b"[[],{},{}]")
    # when it is read
    read = envelope.decode(taken(payload), "t", "w")
    # then Celery gets what it takes for granted
    headers = read["headers"]
    assert [headers["id"], headers["root_id"], headers["group"]] == [str(one)] * 3
    assert headers["parent_id"] is None
    assert read["properties"]["correlation_id"] == str(one)


def test_a_body_may_hold_lines_and_bytes_that_are_no_text() -> None:
    body = b"one\ntwo\n\xff\x00"
    payload = envelope.joined(envelope.head_of(MESSAGE), body)
    assert envelope.decode(taken(payload), "t", "w")["body"] == body


def test_a_shared_body_is_read_beside_its_head() -> None:
    read = envelope.decode(taken(envelope.head_of(MESSAGE).encode(), b"[[1],{},{}]"), "t", "w")
    assert read["body"] == b"[[1],{},{}]"


def test_a_message_that_came_back_says_so() -> None:
    payload = envelope.joined(envelope.head_of(MESSAGE), b"{}")
    assert envelope.decode(taken(payload, tries=2), "t", "w")["properties"]["delivery_info"][
        "redelivered"
    ]


def test_a_time_that_the_queue_has_waited_for_is_kept_under_another_name() -> None:
    # given a message with a due time
    message = {**MESSAGE, "headers": {"eta": "2030-01-01T00:00:00+00:00"}}
    # then Celery, which would wait for it again, does not see it
    headers = envelope.decode(taken(envelope.joined(envelope.head_of(message), b"{}")), "t", "w")[
        "headers"
    ]
    assert headers == {envelope.WAITED_HEADER: "2030-01-01T00:00:00+00:00"}


def test_a_stock_message_keeps_the_time_that_nobody_has_waited_for() -> None:
    # given a message that a stock producer pushed: its body is inside
    body = base64.b64encode(b"[[], {}, {}]").decode()
    message = {**MESSAGE, "body": body, "headers": {"eta": "2030-01-01T00:00:00+00:00"}}
    # then its worker waits for it, as a stock one would
    read = envelope.decode(taken(json.dumps(message).encode()), "t", "w")
    assert (read["body"], read["headers"]) == (body, message["headers"])


@pytest.mark.parametrize("payload", [b"", b"no json", b"[]", b"{}", b'{"headers": 1}', b"\xff"])
def test_what_is_no_message_is_said_to_be_none(payload: bytes) -> None:
    with pytest.raises(envelope.UnreadableEnvelope, match="message 7 of queue q"):
        envelope.decode(taken(payload), "t", "w")


def test_a_message_that_several_queues_share_whole_is_read_as_one_of_its_own() -> None:
    # given a message whose head and body are both shared
    whole = envelope.joined(envelope.head_of(MESSAGE), b"one\ntwo")
    # then it is the same as if it had them itself
    shared = envelope.decode(taken(b"", whole), "t", "w")
    assert shared == envelope.decode(taken(whole), "t", "w")
    assert shared["body"] == b"one\ntwo"


def test_a_task_is_named_for_a_log_and_what_is_none_is_not() -> None:
    head = envelope.head_of(MESSAGE)
    assert envelope.task_of(taken(envelope.joined(head, b"{}"))) == "t[1]"
    assert envelope.task_of(taken(head.encode(), b"{}")) == "t[1]"
    for other in (b"", b"no json", b"[]", b'{"headers": null}', b'{"headers": {}}'):
        assert envelope.task_of(taken(other)) == ""
