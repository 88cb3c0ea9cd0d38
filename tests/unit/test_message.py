"""How a message's body is read: fast, and in every case as Kombu would read it."""

from __future__ import annotations

import base64
import json
import tracemalloc
from datetime import UTC, datetime
from typing import Any

import pytest
from kombu import compression as kombus
from kombu.exceptions import ContentDisallowed, DecodeError
from kombu.serialization import registry
from kombu.transport import virtual
from kombu.utils.json import dumps

from cqrs_celery.transport.message import BodyExpandsTooFar, Message

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


# ------------------------------------------------------------ compressed by Celery


class Bounded(virtual.Channel):
    """A channel that accepts a hundred thousand bytes of what was compressed."""

    max_expanded_bytes = 100_000

    def __init__(self) -> None:
        """Do without a connection."""


def compressed(text: bytes, by: str) -> Message:
    body, name = kombus.compress(text, by)
    payload = {
        "body": base64.b64encode(body).decode(),
        "content-type": JSON,
        "content-encoding": "utf-8",
        "headers": {"compression": name},
        "properties": {"delivery_tag": "1", "delivery_info": {}, "body_encoding": "base64"},
    }
    return Message(payload, channel=Bounded(), accept={JSON})


@pytest.mark.parametrize("by", ["gzip", "bzip2", "lzma"])
def test_a_compressed_body_is_expanded_up_to_the_bound(by: str) -> None:
    most = b'"' + 99_998 * b"0" + b'"'
    assert compressed(most, by).decode() == 99_998 * "0"
    with pytest.raises(BodyExpandsTooFar) as refused:
        compressed(most + b" ", by)._reraise_error()
    assert "holds more than 100,000 bytes" in str(refused.value)
    assert "broker_transport_options['max_expanded_bytes']" in str(refused.value)


@pytest.mark.parametrize("by", ["gzip", "bzip2", "lzma"])
def test_what_expands_too_far_takes_no_memory_for_what_it_holds(by: str) -> None:
    body = 40_000_000 * b"0"
    bomb, _ = kombus.compress(body, by)
    del body
    payload = {
        "body": bomb,
        "headers": {"compression": by},
        "properties": {"delivery_tag": "1", "delivery_info": {}},
    }
    tracemalloc.start()
    try:
        refused = Message(payload, channel=Bounded())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert refused.errors
    assert peak < 12_000_000  # lzma alone has a dictionary of eight


@pytest.mark.parametrize("name", ["rot13", ["gzip"], 1])
def test_a_compression_that_there_is_not_is_refused_by_kombu(name: Any) -> None:
    payload = {
        "body": "[]",
        "headers": {"compression": name},
        "properties": {"delivery_tag": "1", "delivery_info": {}},
    }
    made = Message(payload, channel=Bounded())
    assert [kind for kind, _, _ in made.errors] in ([KeyError], [TypeError])


def test_a_body_that_is_not_what_its_compression_says_is_refused_by_kombu() -> None:
    payload = {
        "body": "[]",
        "headers": {"compression": "gzip"},
        "properties": {"delivery_tag": "1", "delivery_info": {}},
    }
    assert Message(payload, channel=Bounded()).errors
