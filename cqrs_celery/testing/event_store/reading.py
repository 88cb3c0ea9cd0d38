"""The tests of what is read of a stream, and of everything."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

from ...store.events import (
    StoredEvent,
)
from ...store.ports import EventStore
from ...store.stream import NO_STREAM
from .base import BOLT, NUT, StoreTests, append, event, events, positions, versions


class ReadingTests(StoreTests):
    """The tests of what is read of a stream, and of everything."""

    # Reading

    def test_a_new_store_has_no_events(self, store: EventStore) -> None:
        assert list(store.read_all()) == []

    def test_a_stream_that_nobody_wrote_is_empty(self, store: EventStore) -> None:
        assert list(store.read_stream(BOLT)) == []

    def test_what_was_appended_is_read(self, store: EventStore) -> None:
        new = event()
        append(store, BOLT, NO_STREAM, new)
        assert list(store.read_stream(BOLT)) == [StoredEvent(BOLT, 1, self.place(store, 1), new)]

    def test_events_are_read_in_the_order_of_the_append(self, store: EventStore) -> None:
        new = events(20)
        append(store, BOLT, NO_STREAM, *new)
        assert [stored.event for stored in store.read_stream(BOLT)] == new

    def test_versions_count_from_one_over_several_appends(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(2))
        append(store, BOLT, 2, *events(3))
        assert versions(store.read_stream(BOLT)) == [1, 2, 3, 4, 5]

    def test_a_stream_is_read_from_behind_a_version(self, store: EventStore) -> None:
        """ACCEPTANCE 60 and 68."""
        append(store, BOLT, NO_STREAM, *events(5))
        assert versions(store.read_stream(BOLT, after_version=3)) == [4, 5]

    def test_nothing_is_read_from_behind_the_last_version(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(5))
        assert list(store.read_stream(BOLT, after_version=5)) == []
        assert list(store.read_stream(BOLT, after_version=99)) == []

    def test_no_more_than_the_limit_is_read_of_a_stream(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(5))
        assert versions(store.read_stream(BOLT, limit=2)) == [1, 2]
        assert versions(store.read_stream(BOLT, after_version=2, limit=2)) == [3, 4]
        assert versions(store.read_stream(BOLT, after_version=4, limit=2)) == [5]

    def test_a_long_stream_is_read_whole(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(2_500))
        assert versions(store.read_stream(BOLT)) == list(range(1, 2_501))

    def test_everything_is_read_in_the_order_of_the_commits(self, store: EventStore) -> None:
        first, second, third = event(), event(), event()
        append(store, BOLT, NO_STREAM, first)
        append(store, NUT, NO_STREAM, second)
        append(store, BOLT, 1, third)
        assert [stored.event for stored in store.read_all()] == [first, second, third]

    def test_everything_is_read_page_by_page(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(7))
        pages, position = [], 0
        while page := store.read_all(after_position=position, limit=3):
            pages.append([stored.global_position for stored in page])
            position = pages[-1][-1]
        assert [len(page) for page in pages] == [3, 3, 1]
        assert [position for page in pages for position in page] == positions(store)
        self.check_positions(store, 7)

    def test_everything_is_read_however_much_it_is(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, *events(1_500))
        append(store, NUT, NO_STREAM, *events(1_001))
        assert len(store.read_all()) == 2_501
        self.check_positions(store, 2_501)
        assert len(store.read_all(after_position=self.place(store, 500))) == 2_001
        assert len(store.read_all(limit=2_400)) == 2_400

    def test_an_event_reads_the_same_from_its_stream_and_from_everything(
        self, store: EventStore
    ) -> None:
        append(store, NUT, NO_STREAM, event())
        append(store, BOLT, NO_STREAM, *events(2))
        first = self.place(store, 1)
        assert list(store.read_stream(BOLT)) == list(store.read_all(after_position=first))

    # Ending

    def test_a_closed_store_may_be_used_again(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event())
        store.close()
        store.close()
        append(store, BOLT, 1, event())
        assert versions(store.read_stream(BOLT)) == [1, 2]
