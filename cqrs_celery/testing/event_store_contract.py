"""What every event store passes.

Give the class a store, and pytest runs it:

    class TestMyStore(EventStoreContract):
        @pytest.fixture
        def store(self): return MyStore(...)

The store is new and empty for each test. Only the port is used. What needs an engine is not here:
lost leases, delivery, the end of a command's time to live, a server that does not answer.

Two promises a store may leave out, where its database does not keep them; its class of tests says
so: `has_gapless_positions`, `keeps_bytes`.
"""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import msgspec
import pytest

from ..errors import ConcurrencyError, CQRSError, DuplicateCommand, InvalidText
from ..messages.metadata import Metadata, new_id
from ..store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    NewEvent,
    StoredEvent,
    StreamAppend,
)
from ..store.ports import EventStore
from ..store.stream import ANY_VERSION, NO_STREAM, StreamName

R = TypeVar("R")

#: How many threads race.
THREADS: Final = 8

BOLT: Final = StreamName("inventory", "InventoryItem", "bolt")
NUT: Final = StreamName("inventory", "InventoryItem", "nut")

#: Data that PostgreSQL's jsonb does not take as they are.
_WITH_NUL: Final = b'{"name":"a\\u0000b"}'

STRANGE_IDS: Final = [
    "with space",
    " leading and trailing ",
    "a:b::c",
    "a/b/../c",
    "a-b--c",
    "{hash}tag",
    "*?[a-z]",
    "'; DROP TABLE events; --",
    '"quoted"',
    "back\\slash",
    "percent%20%s",
    "tab\tand\nnewline",
    "naïve-Ångström",
    "物品-42",
    "🔩",
    "0",
    "x" * 200,
]

#: Texts that PostgreSQL, or UTF-8, has no form for.
NOT_KEPT: Final = ["a\0b", "a\ud800b"]

#: The ids of an event's trace, by the beginnings of their names.
TRACE: Final = ["correlation", "causation", "causation_parent"]

#: Ids that a careless store takes for one: by case, by trailing space, by Unicode's two ways.
LOOKALIKES: Final = [("bolt", "BOLT"), ("bolt", "bolt "), ("caf\u00e9", "cafe\u0301"), ("1", "01")]


class EventStoreContract:
    """The tests of the EventStore port.

    Attributes:
        has_gapless_positions: positions count from 1 without gaps. If not, they increase, and a
            refused or failed append may leave numbers out.
        keeps_bytes: an event's data come back byte for byte. If not, as the same JSON.
    """

    has_gapless_positions: bool = True
    keeps_bytes: bool = True

    @pytest.fixture
    def store(self) -> EventStore:
        """Return a new, empty store; every class of tests overrides this."""
        raise NotImplementedError(
            f"{type(self).__name__} has no store: override the fixture `store` to return a new,"
            " empty one"
        )

    def place(self, store: EventStore, number: int) -> int:
        """Return the position of the store's event of a number, counted from 1."""
        return number if self.has_gapless_positions else positions(store)[number - 1]

    def check_positions(self, store: EventStore, count: int) -> None:
        """Check that there are so many events, at positions that increase as is promised."""
        found = positions(store)
        assert len(found) == count
        if self.has_gapless_positions:
            assert found == list(range(1, count + 1))
        else:
            assert found == sorted(set(found))

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

    # Expected versions

    def test_a_history_is_what_a_replay_needs_of_the_same_events(self, store: EventStore) -> None:
        """Only of a store that reads it by itself: see `HistoryStore`."""
        read_history = getattr(store, "read_history", None)
        if read_history is None:
            return
        # given events of several types, among those of another stream
        append(store, BOLT, NO_STREAM, event(type="inventory.Made"), *events(2))
        append(store, NUT, NO_STREAM, *events(3))
        append(store, BOLT, 3, event(type_version=7), event(data=_WITH_NUL))
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
        read_history = getattr(store, "read_history", None)
        if read_history is None:
            return
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
        trace = {f"{place}_id": bad} if place in TRACE else {}
        strange = event(metadata=Metadata(**trace), type=bad if place == "type" else "shop.sold")
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

    # Commands

    def test_a_command_that_did_not_commit_is_not_found(self, store: EventStore) -> None:
        assert store.find_command("c-1") is None

    def test_a_command_s_outcome_is_found_once_it_has_committed(self, store: EventStore) -> None:
        outcome = '{"result": "naïve 🔩"}'
        append(store, NUT, NO_STREAM, event())
        append(store, BOLT, NO_STREAM, event(), command=command("c-1", outcome))
        assert store.find_command("c-1") == CommandOutcome(self.place(store, 2), outcome)
        assert store.find_command("c-2") is None

    def test_a_command_that_has_committed_is_refused_and_nothing_is_written(
        self, store: EventStore
    ) -> None:
        append(store, BOLT, NO_STREAM, event(), command=command("c-1", '"first"'))
        with pytest.raises(DuplicateCommand) as refused:
            append(store, BOLT, 1, event(), command=command("c-1", '"second"'))
        error = refused.value
        first = self.place(store, 1)
        assert (error.command_id, error.position, error.outcome) == ("c-1", first, '"first"')
        assert store.find_command("c-1") == CommandOutcome(first, '"first"')
        assert len(store.read_all()) == 1

    def test_a_command_that_has_committed_is_a_duplicate_rather_than_stale(
        self, store: EventStore
    ) -> None:
        append(store, BOLT, NO_STREAM, event(), command=command("c-1"))
        with pytest.raises(DuplicateCommand):
            append(store, BOLT, NO_STREAM, event(), command=command("c-1"))

    def test_a_command_whose_append_is_refused_is_not_recorded(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event())
        with pytest.raises(ConcurrencyError):
            append(store, BOLT, NO_STREAM, event(), command=command("c-1"))
        assert store.find_command("c-1") is None
        append(store, BOLT, 1, event(), command=command("c-1"))

    @pytest.mark.parametrize("command_id", STRANGE_IDS)
    def test_a_command_s_id_is_any_text(self, store: EventStore, command_id: str) -> None:
        append(store, BOLT, NO_STREAM, event(), command=command(command_id))
        assert store.find_command(command_id) == CommandOutcome(self.place(store, 1), "null")

    @pytest.mark.parametrize(("one", "other"), LOOKALIKES)
    def test_commands_whose_ids_look_alike_are_two(
        self, store: EventStore, one: str, other: str
    ) -> None:
        append(store, BOLT, NO_STREAM, event(), command=command(one))
        assert store.find_command(other) is None
        append(store, BOLT, 1, event(), command=command(other))
        for number, command_id in enumerate((one, other), 1):
            found = CommandOutcome(self.place(store, number), "null")
            assert store.find_command(command_id) == found

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
            Metadata(correlation_id="c-1", causation_id="c-2", causation_parent_id="c-0"),
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

    # Many writers at once

    def test_of_writers_racing_for_one_stream_each_success_is_one_version(
        self, store: EventStore
    ) -> None:
        def write_ten(_: int) -> list[Committed | ConcurrencyError]:
            return [
                outcome_of(append, store, BOLT, len(store.read_stream(BOLT)), event())
                for _ in range(10)
            ]

        outcomes = [outcome for each in race(write_ten) for outcome in each]
        written = sorted(o.versions[0] for o in outcomes if isinstance(o, Committed))
        refused = [o for o in outcomes if isinstance(o, ConcurrencyError)]
        assert len(written) + len(refused) == THREADS * 10
        assert written == versions(store.read_stream(BOLT)) == list(range(1, len(written) + 1))
        assert all(o.stream == "InventoryItem-bolt" and o.found > o.expected for o in refused)

    def test_of_writers_racing_to_make_a_stream_one_does(self, store: EventStore) -> None:
        outcomes = race(lambda _: outcome_of(append, store, BOLT, NO_STREAM, event()))
        written = [o for o in outcomes if isinstance(o, Committed)]
        assert written == [Committed(self.place(store, 1), (1,))]
        refused = [fields(o) for o in outcomes if isinstance(o, ConcurrencyError)]
        assert refused == [("InventoryItem-bolt", 0, 1)] * (THREADS - 1)

    def test_writers_of_streams_of_their_own_never_meet_and_leave_no_gaps(
        self, store: EventStore
    ) -> None:
        def write_ten(writer: int) -> None:
            stream = StreamName("inventory", "InventoryItem", str(writer))
            for version in range(0, 20, 2):
                append(store, stream, version, *events(2))

        race(write_ten)
        self.check_positions(store, THREADS * 20)

    def test_writers_racing_for_two_streams_in_opposite_orders_never_tear_a_commit(
        self, store: EventStore
    ) -> None:
        def write_ten(writer: int) -> None:
            for _ in range(10):
                version = len(store.read_stream(BOLT))
                pair = [StreamAppend(s, version, events(1)) for s in (BOLT, NUT)]
                outcome_of(store.append, pair if writer % 2 else pair[::-1])

        race(write_ten)
        assert len(store.read_stream(BOLT)) == len(store.read_stream(NUT)) > 0

    def test_of_one_command_carried_out_by_many_at_once_one_commits(
        self, store: EventStore
    ) -> None:
        outcomes = race(
            lambda _: outcome_of(append, store, BOLT, ANY_VERSION, event(), command=command("c-1"))
        )
        assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, DuplicateCommand) for outcome in outcomes) == THREADS - 1
        assert len(store.read_all()) == 1

    def test_one_append_made_by_many_at_once_is_written_once(self, store: EventStore) -> None:
        appends = [StreamAppend(BOLT, NO_STREAM, events(2))]
        outcomes = race(lambda _: store.append(appends))
        assert outcomes == [Committed(self.place(store, 2), (2,))] * THREADS
        assert len(store.read_all()) == 2

    # Ending

    def test_a_closed_store_may_be_used_again(self, store: EventStore) -> None:
        append(store, BOLT, NO_STREAM, event())
        store.close()
        store.close()
        append(store, BOLT, 1, event())
        assert versions(store.read_stream(BOLT)) == [1, 2]


def event(
    *,
    data: bytes = b'{"count": 5}',
    type: str = "inventory.items_checked_in",
    type_version: int = 1,
    timestamp: datetime = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
    metadata: Metadata | None = None,
) -> NewEvent:
    """Return an event with an id of its own."""
    return NewEvent(new_id(), type, type_version, timestamp, data, metadata or Metadata())


def events(count: int) -> list[NewEvent]:
    """Return events that can be told apart."""
    return [event(data=b'{"count": %d}' % n) for n in range(count)]


def append(
    store: EventStore,
    stream: StreamName,
    expected_version: int,
    *new: NewEvent,
    command: CommandRecord | None = None,
) -> Committed:
    """Append to one stream."""
    return store.append([StreamAppend(stream, expected_version, new)], command=command)


def command(command_id: str, outcome: str = "null") -> CommandRecord:
    """Return a command that is remembered for longer than a test takes."""
    return CommandRecord(command_id, outcome, ttl_s=3_600)


def versions(stored: Sequence[StoredEvent]) -> list[int]:
    """Return the versions of events."""
    return [each.version for each in stored]


def positions(store: EventStore) -> list[int]:
    """Return the positions of all events."""
    return [each.global_position for each in store.read_all()]


def fields(error: ConcurrencyError) -> tuple[str, int, int]:
    """Return what a refusal carries: stream, expected version, found version."""
    return error.stream, error.expected, error.found


def outcome_of(action: Callable[..., R], *args: Any, **kwargs: Any) -> Any:
    """Return what an action returns, or how the store refuses it."""
    try:
        return action(*args, **kwargs)
    except CQRSError as error:
        return error


def race(action: Callable[[int], R]) -> list[R]:
    """Do something in many threads at once; each gets its number. Return what they return."""
    start = threading.Barrier(THREADS)

    def run(number: int) -> R:
        start.wait(timeout=30)
        return action(number)

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(run, range(THREADS)))
