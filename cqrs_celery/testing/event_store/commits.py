"""The tests of commits, to one stream and several, and of repeated ones."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import msgspec
import pytest

from ...errors import ConcurrencyError, InvalidText
from ...store.events import (
    Committed,
    StreamAppend,
)
from ...store.ports import EventStore
from ...store.stream import ANY_VERSION, NO_STREAM, StreamName
from .base import (
    BOLT,
    NOT_KEPT,
    NUT,
    TRACE,
    StoreTests,
    append,
    command,
    event,
    events,
    fields,
    traced,
    versions,
)


class CommitTests(StoreTests):
    """The tests of commits, to one stream and several, and of repeated ones."""

    # Commits

    def test_a_commit_says_where_it_ended(self, store: EventStore) -> None:
        append(store, NUT, NO_STREAM, *events(3))
        committed = store.append(
            [
                StreamAppend(BOLT, NO_STREAM, events(2)),
                StreamAppend(NUT, 3, events(1)),
            ]
        )
        assert committed == Committed(position=self.place(store, 6), versions=(2, 4))

    def test_a_commit_of_several_streams_writes_them_all(self, store: EventStore) -> None:
        """ACCEPTANCE 61 and 69."""
        store.append(
            [StreamAppend(BOLT, NO_STREAM, events(2)), StreamAppend(NUT, NO_STREAM, events(3))]
        )
        assert versions(store.read_stream(BOLT)) == [1, 2]
        assert versions(store.read_stream(NUT)) == [1, 2, 3]

    def test_a_commit_s_events_stand_together_in_the_order_of_its_streams(
        self, store: EventStore
    ) -> None:
        store.append(
            [StreamAppend(NUT, NO_STREAM, events(2)), StreamAppend(BOLT, NO_STREAM, events(1))]
        )
        assert [(stored.stream, stored.version) for stored in store.read_all()] == [
            (NUT, 1),
            (NUT, 2),
            (BOLT, 1),
        ]

    @pytest.mark.parametrize("stale_comes_first", [True, False])
    def test_if_one_of_several_streams_is_stale_none_is_written(
        self, store: EventStore, *, stale_comes_first: bool
    ) -> None:
        """ACCEPTANCE 61, 65 and 69."""
        append(store, NUT, NO_STREAM, event())
        appends = [
            StreamAppend(NUT, NO_STREAM, events(1)),
            StreamAppend(BOLT, NO_STREAM, events(1)),
        ]
        with pytest.raises(ConcurrencyError) as refused:
            store.append(appends if stale_comes_first else appends[::-1])
        assert fields(refused.value) == ("InventoryItem-nut", 0, 1)
        assert list(store.read_stream(BOLT)) == []
        assert len(store.read_all()) == 1

    def test_positions_have_no_gaps_after_refusals_where_that_is_promised(
        self, store: EventStore
    ) -> None:
        for _ in range(3):
            append(store, BOLT, ANY_VERSION, *events(2))
            with pytest.raises(ConcurrencyError):
                append(store, BOLT, NO_STREAM, *events(2))
        self.check_positions(store, 6)

    def test_a_large_commit_is_written_whole(self, store: EventStore) -> None:
        appends = [
            StreamAppend(StreamName("inventory", "InventoryItem", str(n)), NO_STREAM, events(10))
            for n in range(100)
        ]
        committed = store.append(appends)
        assert committed == Committed(self.place(store, 1_000), versions=(10,) * 100)
        self.check_positions(store, 1_000)

    def test_an_append_of_nothing_is_refused(self, store: EventStore) -> None:
        with pytest.raises(ValueError, match="nothing to append"):
            store.append([])

    def test_an_append_without_events_is_refused_and_nothing_is_written(
        self, store: EventStore
    ) -> None:
        with pytest.raises(ValueError, match="InventoryItem-bolt has no events"):
            store.append(
                [StreamAppend(NUT, NO_STREAM, events(1)), StreamAppend(BOLT, NO_STREAM, [])]
            )
        assert list(store.read_all()) == []

    def test_a_stream_that_is_twice_in_a_commit_is_refused(self, store: EventStore) -> None:
        with pytest.raises(ValueError, match="InventoryItem-bolt is appended to twice"):
            store.append(
                [StreamAppend(BOLT, NO_STREAM, events(1)), StreamAppend(BOLT, 1, events(1))]
            )
        assert list(store.read_all()) == []

    @pytest.mark.parametrize("bad", NOT_KEPT, ids=["nul", "half of a pair"])
    @pytest.mark.parametrize("place", ["aggregate", "event", "type", *TRACE])
    def test_an_id_that_not_every_store_can_hold_is_refused_and_nothing_is_written(
        self, store: EventStore, place: str, bad: str
    ) -> None:
        stream = BOLT._replace(aggregate_id=bad) if place == "aggregate" else BOLT
        trace = {place: bad} if place in TRACE else {}
        strange = event(metadata=traced(**trace), type=bad if place == "type" else "shop.sold")
        if place == "event":
            strange = msgspec.structs.replace(strange, event_id=bad)
        for new in ([strange], [event(), strange, event()]):
            with pytest.raises(InvalidText, match=r"has (a NUL|half of a surrogate pair)"):
                store.append(
                    [StreamAppend(NUT, NO_STREAM, events(1)), StreamAppend(stream, NO_STREAM, new)]
                )
        assert list(store.read_all()) == []

    @pytest.mark.parametrize("bad", NOT_KEPT, ids=["nul", "half of a pair"])
    def test_a_command_that_not_every_store_can_record_is_refused_and_nothing_is_written(
        self, store: EventStore, bad: str
    ) -> None:
        for record in (command(bad), command("c-1", f'"{bad}"')):
            with pytest.raises(InvalidText, match="command"):
                append(store, BOLT, NO_STREAM, event(), command=record)
        assert list(store.read_all()) == []

    @pytest.mark.parametrize("bad", NOT_KEPT, ids=["nul", "half of a pair"])
    def test_what_no_store_can_hold_is_not_looked_for(self, store: EventStore, bad: str) -> None:
        with pytest.raises(InvalidText, match="the command's id has"):
            store.find_command(bad)
        with pytest.raises(InvalidText, match="the stream's name"):
            store.read_stream(BOLT._replace(aggregate_id=bad))

    # Repeated appends

    def test_a_repeated_append_returns_what_the_first_did(self, store: EventStore) -> None:
        appends = [
            StreamAppend(BOLT, NO_STREAM, events(2)),
            StreamAppend(NUT, NO_STREAM, events(1)),
        ]
        first = store.append(appends)
        assert store.append(appends) == first
        self.check_positions(store, 3)

    def test_a_repeated_append_is_known_after_others_have_written(self, store: EventStore) -> None:
        appends = [StreamAppend(BOLT, NO_STREAM, events(2))]
        first = store.append(appends)
        append(store, BOLT, 2, *events(3))
        append(store, NUT, NO_STREAM, event())
        assert store.append(appends) == first
        assert len(store.read_all()) == 6

    def test_a_repeated_append_at_any_version_is_written_once(self, store: EventStore) -> None:
        appends = [StreamAppend(BOLT, ANY_VERSION, events(1))]
        assert store.append(appends) == store.append(appends)
        assert len(store.read_stream(BOLT)) == 1

    def test_a_repeated_append_of_a_command_is_no_duplicate_of_it(self, store: EventStore) -> None:
        appends = [StreamAppend(BOLT, NO_STREAM, events(1))]
        first = store.append(appends, command=command("c-1"))
        assert store.append(appends, command=command("c-1")) == first

    def test_a_refused_append_may_be_repeated_when_its_version_has_come(
        self, store: EventStore
    ) -> None:
        late = event()
        with pytest.raises(ConcurrencyError):
            append(store, BOLT, 1, late)
        append(store, BOLT, NO_STREAM, event())
        assert append(store, BOLT, 1, late).versions == (2,)

    def test_equal_events_with_ids_of_their_own_are_all_kept(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event(data=b"{}"), event(data=b"{}"))
        append(store, BOLT, 2, event(data=b"{}"))
        assert versions(store.read_stream(BOLT)) == [1, 2, 3]
