"""The tests of what names streams, and of what events hold."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from ...messages.metadata import Metadata
from ...store.ports import EventStore
from ...store.stream import NO_STREAM, StreamName
from .base import (
    BOLT,
    LOOKALIKES,
    STRANGE_IDS,
    TRACE,
    StoreTests,
    append,
    event,
    events,
    traced,
    versions,
)


class ContentTests(StoreTests):
    """The tests of what names streams, and of what events hold."""

    # A stream's identity

    @pytest.mark.parametrize("aggregate_id", STRANGE_IDS)
    def test_an_aggregate_s_id_is_any_text(self, store: EventStore, aggregate_id: str) -> None:
        stream = StreamName("inventory", "InventoryItem", aggregate_id)
        append(store, stream, NO_STREAM, event())
        assert [stored.stream for stored in store.read_stream(stream)] == [stream]
        assert [stored.stream for stored in store.read_all()] == [stream]

    @pytest.mark.parametrize(("one", "other"), LOOKALIKES)
    def test_ids_that_look_alike_are_two_streams(
        self, store: EventStore, one: str, other: str
    ) -> None:
        append(store, StreamName("inventory", "InventoryItem", one), NO_STREAM, event())
        append(store, StreamName("inventory", "InventoryItem", other), NO_STREAM, event())
        assert [stored.stream.aggregate_id for stored in store.read_all()] == [one, other]

    def test_one_id_under_two_aggregate_types_is_two_streams(self, store: EventStore) -> None:
        order = BOLT._replace(aggregate_type="Order")
        append(store, BOLT, NO_STREAM, *events(2))
        append(store, order, NO_STREAM, event())
        assert versions(store.read_stream(BOLT)) == [1, 2]
        assert versions(store.read_stream(order)) == [1]

    def test_one_id_under_two_applications_is_two_streams(self, store: EventStore) -> None:
        elsewhere = BOLT._replace(application="shop")
        append(store, BOLT, NO_STREAM, *events(2))
        append(store, elsewhere, NO_STREAM, event())
        assert versions(store.read_stream(BOLT)) == [1, 2]
        assert versions(store.read_stream(elsewhere)) == [1]

    # An event's content

    @pytest.mark.parametrize(
        "data",
        [
            b"{}",
            '{"name":"naïve 物品 🔩"}'.encode(),
            b'{"quotes":"\\"\\\\ \'","nul":"\\u0000"}',
            b'{"big":123456789012345678901234567890,"small":1e-300}',
            b'{"b":1,  "a":2}',
        ],
    )
    def test_data_come_back_byte_for_byte_or_as_the_same_json(
        self, store: EventStore, data: bytes
    ) -> None:
        append(store, BOLT, NO_STREAM, event(data=data))
        found = store.read_stream(BOLT)[0].event.data
        if self.keeps_bytes:
            assert found == data
        assert json.loads(found) == json.loads(data)

    def test_a_large_event_is_kept(self, store: EventStore) -> None:
        data = b'{"text": "' + b"x" * 1_000_000 + b'"}'
        append(store, BOLT, NO_STREAM, event(data=data))
        assert store.read_stream(BOLT)[0].event.data == data

    def test_the_type_and_its_version_are_kept(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event(type="shop.item_created", type_version=7))
        stored = store.read_stream(BOLT)[0].event
        assert (stored.type, stored.type_version) == ("shop.item_created", 7)

    @pytest.mark.parametrize(
        "metadata",
        [
            Metadata(),
            Metadata(correlation_id="c-1", causation_id="naïve: 🔩 \"'"),
            traced(**{name: f"of {name}" for name in TRACE}),
        ],
    )
    def test_metadata_is_kept(self, store: EventStore, metadata: Metadata) -> None:
        append(store, BOLT, NO_STREAM, event(metadata=metadata))
        assert store.read_stream(BOLT)[0].event.metadata == metadata

    @pytest.mark.parametrize("microsecond", [0, 1, 678_901, 999_999])
    def test_timestamps_are_utc_to_the_microsecond(
        self, store: EventStore, microsecond: int
    ) -> None:
        timestamp = datetime(2026, 3, 29, 1, 30, 59, microsecond, tzinfo=UTC)
        append(store, BOLT, NO_STREAM, event(timestamp=timestamp))
        stored = store.read_stream(BOLT)[0].event.timestamp
        assert stored == timestamp
        assert stored.utcoffset() == timedelta(0)
