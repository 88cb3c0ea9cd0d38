"""The tests of expected versions."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import pytest

from ...errors import ConcurrencyError
from ...store.capabilities import capabilities_of
from ...store.events import (
    Committed,
)
from ...store.ports import EventStore
from ...store.stream import ANY_VERSION, NO_STREAM, StreamName
from .base import BOLT, NUT, WITH_NUL, StoreTests, append, event, events, fields


class VersionTests(StoreTests):
    """The tests of expected versions."""

    # Expected versions

    def test_a_history_is_what_a_replay_needs_of_the_same_events(self, store: EventStore) -> None:
        """Only of a store that reads it by itself: see `HistoryStore`."""
        histories = capabilities_of(store).histories
        if histories is None:
            return
        read_history = histories.read_history
        # given events of several types, among those of another stream
        append(store, BOLT, NO_STREAM, event(type="inventory.Made"), *events(2))
        append(store, NUT, NO_STREAM, *events(3))
        append(store, BOLT, 3, event(type_version=7), event(data=WITH_NUL))
        # then it has of each what reading the stream has
        stored = store.read_stream(BOLT)
        read = [(e.version, e.event.type, e.event.type_version, e.event.data) for e in stored]
        ids = [one.event.event_id for one in stored]
        assert read_history(BOLT) == (read, ids[-1])
        assert len(read) == 5
        # and of those behind the ones that are known
        for known in ([2], [2, 4], [1, 2, 3], [5], [1, 5]):
            after = known[-1]
            assert read_history(BOLT, known=[(version, ids[version - 1]) for version in known]) == (
                read[after:],
                "" if after == 5 else ids[-1],
            )
        assert read_history(StreamName("inventory", "InventoryItem", "none")) == ([], "")

    def test_a_history_of_a_stream_without_a_known_event_is_none(self, store: EventStore) -> None:
        """Only of a store that reads it by itself: see `HistoryStore`."""
        histories = capabilities_of(store).histories
        if histories is None:
            return
        read_history = histories.read_history
        append(store, BOLT, NO_STREAM, *events(3))
        append(store, NUT, NO_STREAM, *events(3))
        one, two, three = (stored.event.event_id for stored in store.read_stream(BOLT))
        assert read_history(BOLT, known=[(1, one), (3, three)]) == ([], "")
        for known in (
            [(4, "another")],
            [(3, two)],
            [(2, three)],
            [(1, two), (3, three)],
            [(1, one), (3, two)],
            [(3, three), (4, "another")],
        ):
            assert read_history(BOLT, known=known) is None
        assert read_history(NUT, known=[(1, one)]) is None
        none = StreamName("inventory", "InventoryItem", "none")
        assert read_history(none, known=[(1, one)]) is None

    def test_no_stream_is_refused_where_there_is_one(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(2))
        with pytest.raises(ConcurrencyError) as refused:
            append(store, BOLT, NO_STREAM, event())
        assert fields(refused.value) == ("InventoryItem-bolt", 0, 2)

    def test_the_current_version_is_accepted(self, store: EventStore) -> None:
        for version in range(4):
            assert append(store, BOLT, version, event()).versions == (version + 1,)

    @pytest.mark.parametrize("stale", [1, 2])
    def test_a_stale_version_is_refused_and_nothing_is_written(
        self, store: EventStore, stale: int
    ) -> None:
        append(store, BOLT, NO_STREAM, *events(3))
        with pytest.raises(ConcurrencyError) as refused:
            append(store, BOLT, stale, event())
        assert fields(refused.value) == ("InventoryItem-bolt", stale, 3)
        assert len(store.read_stream(BOLT)) == len(store.read_all()) == 3

    def test_a_version_that_is_yet_to_come_is_refused(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event())
        with pytest.raises(ConcurrencyError) as refused:
            append(store, BOLT, 5, event())
        assert fields(refused.value) == ("InventoryItem-bolt", 5, 1)

    def test_a_version_of_a_stream_that_is_not_there_is_refused(self, store: EventStore) -> None:
        with pytest.raises(ConcurrencyError) as refused:
            append(store, BOLT, 1, event())
        assert fields(refused.value) == ("InventoryItem-bolt", 1, 0)
        assert list(store.read_all()) == []

    def test_any_version_makes_a_stream(self, store: EventStore) -> None:
        assert append(store, BOLT, ANY_VERSION, event()).versions == (1,)

    def test_any_version_appends_behind_whatever_is_there(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(3))
        assert append(store, BOLT, ANY_VERSION, *events(2)).versions == (5,)

    def test_a_refusal_says_what_was_expected_and_found(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(7))
        with pytest.raises(ConcurrencyError, match=r"InventoryItem-bolt.* 7.* 5"):
            append(store, BOLT, 5, event())

    def test_after_a_refusal_the_stream_can_be_written(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event())
        with pytest.raises(ConcurrencyError):
            append(store, BOLT, NO_STREAM, event())
        assert append(store, BOLT, 1, event()) == Committed(
            position=self.place(store, 2), versions=(2,)
        )
