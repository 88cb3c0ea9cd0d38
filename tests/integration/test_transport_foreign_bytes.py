"""No bytes in a queue make the transport raise: each message is delivered, or a dead letter."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu import Connection, Consumer, Queue

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.transport import TRANSPORT
from tests.chaos.fuzz import QUEUE, Stored, Text, messages, put, written

HALF = Text('"\\ud800"')

#: What a head may name as the queue that its message was published to, and is none.
ORIGINS: dict[str, Any] = {
    "half a character": HALF,
    "a key of the queue's own": "cq:msg",
    "a key of another kind": "somebody's",
    "a divider": "a\x1fb",
    "a NUL": "a\x00b",
    "nothing": "",
    "a number": 7,
    "a number without end": Text("1e400"),
    "a list": ["x"],
    "an object": {"a": HALF},
    "a long text": "x" * 100_000,
}

#: What it may say of its sequence.
SEQUENCES: dict[str, Any] = {
    "nothing": None,
    "half a character": HALF,
    "a divider": "\x1f",
    "a number": 10**300,
    "a list": [HALF],
}


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    """Give a connection to the emptied server."""
    with Connection(redis_url, transport=TRANSPORT) as connection:
        yield connection


class Outcome:
    """What became of the messages of a queue."""

    def __init__(self, connection: Connection, fed: list[Stored]) -> None:
        """Put messages into the queue, and consume all of it."""
        #: The bodies of what was delivered, in their order.
        self.bodies: list[bytes] = []
        with (
            connection.channel() as channel,
            Consumer(
                channel,
                [Queue(QUEUE)(channel)],
                on_message=self._handle,
                on_decode_error=lambda message, error: message.reject(),
            ),
        ):
            queue: ReliableQueue = channel.queue
            put(queue, fed)
            while queue.count(QUEUE).ready:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)
            channel.consumer.flush()
            #: What is held still: nothing may be.
            self.held = queue.in_flight(channel.consumer.name)
            #: The reasons of the dead letters.
            letters = list(queue.letters.all(QUEUE))
            self.reasons = [json.loads(one.why)["reason"] for one in letters]

    def _handle(self, message: Any) -> None:
        self.bodies.append(message.body)
        message.ack()


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_message_whose_head_names_what_is_no_other_queue_is_delivered(
    origin: str, sequence: str, connection: Connection
) -> None:
    # given
    info = {"exchange": "", "routing_key": ORIGINS[origin]}
    headers = {"cqrs_sequence": SEQUENCES[sequence]}
    head = written({"properties": {"delivery_info": info}, "headers": headers}).encode()
    connection.default_channel.client.set("somebody's", "text")
    fed = [Stored(head + b"\n" + body, is_raw=False) for body in (b"1", b"2")]
    # when
    found = Outcome(connection, fed)
    # then
    assert (found.bodies, found.reasons, found.held) == ([b"1", b"2"], [], {})


@pytest.mark.parametrize("body", [b"[[1],{},{}]", b"abc"])
def test_a_body_that_is_not_encoded_as_its_head_says_is_a_dead_letter(
    body: bytes, connection: Connection
) -> None:
    # given a message in the transport's own form, whose body is no base64
    head = b'{"properties":{"body_encoding":"base64"},"headers":{}}'
    # when
    found = Outcome(connection, [Stored(head + b"\n" + body, is_raw=False)])
    # then
    assert (found.bodies, found.reasons, found.held) == ([], ["unreadable envelope"], {})


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(seed=st.integers(0, 2**32))
def test_whatever_bytes_are_in_a_queue_each_message_is_delivered_or_a_dead_letter(
    seed: int, connection: Connection
) -> None:
    # given messages that are valid, mutated, spoilt and random
    connection.default_channel.client.flushdb()
    fed = messages(seed, 100)
    # when
    found = Outcome(connection, fed)
    # then
    assert len(found.bodies) + len(found.reasons) == len(fed)
    assert all(found.reasons)
    assert not found.held
