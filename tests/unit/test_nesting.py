"""How deep JSON is nested is told without recursion, and right whatever its strings hold."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_celery.nesting import READ_LEVELS, is_too_deep
from cqrs_celery.queue.values import Taken
from cqrs_celery.transport import envelope
from tests.chaos.fuzz import messages

VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[]{}"\\,:aé'),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{"\\a'), inner),
    max_leaves=20,
)


def levels(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inside), default=0) if isinstance(value, dict | list) else 0


@given(VALUES, st.integers(0, 6))
def test_levels_are_counted_as_a_decoder_finds_them(value: Any, limit: int) -> None:
    for escapes in (True, False):
        text = json.dumps(value, ensure_ascii=escapes).encode()
        assert is_too_deep(text, limit) == (levels(value) > limit)


@pytest.mark.parametrize(
    ("text", "is_deep"),
    [
        (b"[" * 256 + b"]" * 256, False),
        (b"[" * 257 + b"]" * 257, True),
        (b'{"a":' * 257 + b"1" + b"}" * 257, True),
        (b"[" * 1_000_000, True),
        (b"[]," * 100_000, False),
        (b'["]",' * 300 + b"1" + b"]" * 300, True),
        (b'"' + b"[" * 1000 + b'"', False),
    ],
)
def test_a_text_of_many_brackets_is_told_from_a_deep_one(text: bytes, is_deep: bool) -> None:
    assert is_too_deep(text, READ_LEVELS) == is_deep


@given(st.binary() | st.integers(0, 2**32).map(lambda seed: messages(seed, 1)[0].content))
def test_whatever_bytes_are_taken_they_are_a_message_or_an_unreadable_envelope(
    payload: bytes,
) -> None:
    taken = Taken(7, 3, "q", "", 0, 0, payload, b"")
    message = None
    with contextlib.suppress(envelope.UnreadableEnvelope):
        message = envelope.decode(taken, "7.3", "worker")
    if message is not None:
        assert isinstance(message["headers"], dict)
        assert isinstance(message["body"], str | bytes)
        assert message["properties"]["delivery_info"]["cqrs_lease"] == ("worker", 7, 3)
