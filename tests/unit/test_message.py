"""How a message's body is read: fast, and in every case as Kombu would read it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import registry
from kombu.transport import virtual
from kombu.utils.json import dumps

from cqrs_celery.transport.message import Message

JSON = "application/json"


def message(kind: type[virtual.Message], body: Any, **changes: Any) -> virtual.Message:
    made = kind(channel=None, payload={"properties": {"delivery_tag": "1", "delivery_info": {}}})
    made.body, made.content_type, made.content_encoding = body, JSON, "utf-8"
    made.accept = {JSON}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    "body",
    [
        b'[[1, -2.5, "\\u00e4", "\xc3\xa4", null, true], {"a": {"b": []}}, {"chord": null}]',
        b'{"a": 1, "a": 2}',
        b"[18446744073709551616, 1234567890123456789012345678901234567890]",
        b"[Infinity, -Infinity, 1e400]",
        b'"\\ud800"',
        b"",
        '{"as": "text"}',
        dumps({"when": datetime(2026, 1, 2, 3, 4, tzinfo=UTC)}).encode(),
    ],
)
def test_a_body_is_read_as_kombu_reads_it(body: Any) -> None:
    # when
    ours, kombus = (message(kind, body).payload for kind in (Message, virtual.Message))
    # then
    assert ours == kombus
    assert repr(ours) == repr(kombus)


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b'"\xff"', b'{"__type__": "what", "__value__": 1}']
)
def test_a_body_that_is_no_json_is_refused_as_by_kombu(body: bytes) -> None:
    with pytest.raises(DecodeError):
        message(Message, body).decode()


def test_json_that_is_not_accepted_is_refused() -> None:
    with pytest.raises(ContentDisallowed):
        message(Message, b"[]", accept={"application/x-yaml"}).decode()


def test_a_decoder_that_somebody_registered_for_json_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given
    monkeypatch.setitem(registry._decoders, JSON, lambda data: ["mine", json.loads(data)])
    # then
    assert message(Message, b"[1]").decode() == ["mine", [1]]
