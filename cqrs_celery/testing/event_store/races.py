"""The tests of many writers at once."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

from ...errors import ConcurrencyError, DuplicateCommand
from ...store.events import (
    Committed,
    StreamAppend,
)
from ...store.ports import EventStore
from ...store.stream import ANY_VERSION, NO_STREAM, StreamName
from .base import (
    BOLT,
    NUT,
    THREADS,
    StoreTests,
    append,
    command,
    event,
    events,
    fields,
    outcome_of,
    race,
    versions,
)


class RaceTests(StoreTests):
    """The tests of many writers at once."""

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

    def test_of_two_that_each_check_what_the_other_writes_one_commits(
        self, checking: EventStore
    ) -> None:
        """Otherwise both decide by what is no longer so: a write skew."""
        for n in range(10):
            pair = [StreamName("inventory", "InventoryItem", f"{n}-{side}") for side in "ab"]
            for stream in pair:
                append(checking, stream, NO_STREAM, event())

            def commit(number: int, pair: list[StreamName] = pair) -> object:
                own, other = pair if number % 2 else pair[::-1]
                changes = [StreamAppend(own, 1, events(1)), StreamAppend(other, 1, ())]
                return outcome_of(checking.append, changes)

            outcomes = race(commit)
            won = [one for one in outcomes if isinstance(one, Committed)]
            assert len(won) == 1, outcomes
            assert all(isinstance(one, ConcurrencyError) for one in outcomes if one not in won)
            found = sorted(len(checking.read_stream(stream)) for stream in pair)
            assert found == [1, 2]
