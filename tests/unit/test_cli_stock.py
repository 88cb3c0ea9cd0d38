"""What the commands make of messages, and how they print tables; without a server."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest

from cqrs_celery.cli.stock import Wants, redelivered, stock_message, wants_of
from cqrs_celery.cli.table import print_table

HEAD = {"content-type": "application/json", "content-encoding": "utf-8",
        "properties": {"priority": 3}, "headers": {"task": "t"}}  # fmt: skip


def test_a_message_gets_its_body_inside_and_a_place() -> None:
    payload = json.dumps(HEAD).encode() + b"\n\xff\n\x00"
    message = json.loads(stock_message(payload, b"", queue="orders"))
    assert base64.b64decode(message["body"]) == b"\xff\n\x00"
    properties = message["properties"]
    assert properties["body_encoding"] == "base64"
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "orders"}
    assert properties["priority"] == 3
    assert message["headers"] == {"task": "t"}


def test_a_shared_body_is_copied_into_the_message() -> None:
    message = json.loads(stock_message(json.dumps(HEAD).encode(), b"[1]", queue="orders"))
    assert base64.b64decode(message["body"]) == b"[1]"


def test_a_whole_stock_message_keeps_its_body_as_it_is() -> None:
    whole = json.dumps({**HEAD, "body": "text"}).encode()
    message = json.loads(stock_message(whole, b"", queue="orders"))
    assert message["body"] == "text"
    assert "body_encoding" not in message["properties"]


def test_the_time_it_is_due_becomes_its_eta() -> None:
    head = {**HEAD, "headers": {"eta": "2001-01-01", "cqrs_eta": "2001-01-01"}}
    due = datetime(2030, 1, 2, 3, 4, 5, 6000, tzinfo=UTC)
    due_ms = int(due.timestamp() * 1000)
    raw = stock_message(json.dumps(head).encode(), b"", queue="q", due_ms=due_ms)
    assert json.loads(raw)["headers"] == {"eta": "2030-01-02T03:04:05.006000+00:00"}


@pytest.mark.parametrize(
    "payload", [b"", b"text", b"[]", b'{"properties": 1}\n', b'{"headers": 1}']
)
def test_what_has_no_readable_head_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expecting value|is not a JSON object"):
        stock_message(payload, b"", queue="orders")


@pytest.mark.parametrize(
    ("element", "wants"),
    [
        (b"12", Wants()),
        (b"=sequence", Wants()),
        (b"[]", Wants()),
        (b'{"headers": null}', Wants()),
        (b'{"headers": {"eta": "2001-01-01T00:00:00"}}', Wants()),
        (b'{"headers": {"eta": "soon", "cqrs_sequence": "s-1"}}', Wants("s-1")),
    ],
)
def test_only_stock_messages_want_a_sequence_or_a_time(element: bytes, wants: Wants) -> None:
    assert wants_of(element) == wants


def test_a_time_to_come_is_wanted_in_milliseconds() -> None:
    wants = wants_of(b'{"headers": {"eta": "2999-01-01T00:00:00+00:00"}}')
    assert wants.wait_ms > 365 * 86_400_000


def test_what_goes_back_is_marked_as_delivered_before() -> None:
    message = json.loads(redelivered({"headers": {}, "properties": {"delivery_info": {}}}))
    assert message == {"headers": {"redelivered": True},
                       "properties": {"delivery_info": {"redelivered": True}}}  # fmt: skip


def test_a_table_has_numbers_to_the_right_and_text_to_the_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table(("queue", "n"), [("a", 7), ("orders", 1_000)])
    assert capsys.readouterr().out.splitlines() == [
        "queue      n",
        "------  ----",
        "a          7",
        "orders  1000",
    ]


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("queue",), [])
    assert capsys.readouterr().out == "nothing\n"
