"""The tests of appends that only check the versions of some streams."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

from collections.abc import Callable

import pytest

from ...errors import ConcurrencyError, DuplicateCommand
from ...store.capabilities import capabilities_of
from ...store.events import Committed, StreamAppend
from ...store.ports import EventStore
from ...store.stream import ANY_VERSION, NO_STREAM, StreamName
from .base import (
    BOLT,
    NUT,
    StoreTests,
    append,
    command,
    event,
    events,
    fields,
    versions,
)

THIRD = StreamName("inventory", "InventoryItem", "third")


class CheckTests(StoreTests):
    """The tests of version checks without events; only of a store that declares them."""

    @pytest.mark.parametrize("count", [1, 3])
    @pytest.mark.parametrize("at", [0, 1, 2])
    def test_a_stream_without_events_is_checked_and_stays_as_it_is(
        self, checking: EventStore, at: int, count: int
    ) -> None:
        # given a stream at a version, wherever its check stands among the appends
        append(checking, BOLT, NO_STREAM, *events(2))
        appends = [StreamAppend(NUT, NO_STREAM, events(count)), StreamAppend(THIRD, 0, events(1))]
        appends.insert(at, StreamAppend(BOLT, 2, ()))
        # when it is at that version, then the others are written
        committed = checking.append(appends)
        expected = [count, 1]
        expected.insert(at, 2)
        assert committed == Committed(self.place(checking, 3 + count), tuple(expected))
        assert versions(checking.read_stream(BOLT)) == [1, 2]
        # and the same append again gives the same answer, also when that stream has moved on
        assert checking.append(appends) == committed
        append(checking, BOLT, 2, event())
        assert checking.append(appends) == committed
        self.check_positions(checking, 4 + count)

    @pytest.mark.parametrize("is_first", [True, False])
    @pytest.mark.parametrize("expected", [1, 3])
    def test_a_stream_at_another_version_refuses_the_others(
        self, checking: EventStore, expected: int, is_first: bool
    ) -> None:
        append(checking, BOLT, NO_STREAM, *events(2))
        appends = [StreamAppend(NUT, NO_STREAM, events(1))]
        appends.insert(0 if is_first else 1, StreamAppend(BOLT, expected, ()))
        for remembered in (None, command("buy-1")):
            with pytest.raises(ConcurrencyError) as caught:
                checking.append(appends, command=remembered)
            assert fields(caught.value) == (str(BOLT), expected, 2)
        assert list(checking.read_stream(NUT)) == []
        assert checking.find_command("buy-1") is None
        # and a stream that there is not
        with pytest.raises(ConcurrencyError) as caught:
            checking.append([StreamAppend(NUT, 0, events(1)), StreamAppend(THIRD, 1, ())])
        assert fields(caught.value) == (str(THIRD), 1, 0)
        assert list(checking.read_stream(THIRD)) == list(checking.read_stream(NUT)) == []

    @pytest.mark.parametrize("expected", [NO_STREAM, ANY_VERSION])
    def test_a_check_that_could_check_nothing_is_refused(
        self, checking: EventStore, expected: int
    ) -> None:
        with pytest.raises(ValueError, match="expected a version from 1"):
            checking.append([StreamAppend(NUT, 0, events(1)), StreamAppend(BOLT, expected, [])])
        assert list(checking.read_all()) == []

    def test_checks_alone_are_refused(self, checking: EventStore) -> None:
        append(checking, BOLT, NO_STREAM, event())
        with pytest.raises(ValueError, match="nothing to append"):
            checking.append([StreamAppend(BOLT, 1, ())])

    @pytest.mark.parametrize("at_any", [NO_STREAM, ANY_VERSION])
    def test_a_command_with_a_check_is_recorded_once(
        self, checking: EventStore, at_any: int
    ) -> None:
        append(checking, BOLT, NO_STREAM, event())
        appends = [StreamAppend(BOLT, 1, ()), StreamAppend(NUT, at_any, events(1))]
        committed = checking.append(appends, command=command("buy-1"))
        # its lost reply is given again
        assert checking.append(appends, command=command("buy-1")) == committed
        # but nothing is written under its id again
        again = [StreamAppend(BOLT, 1, ()), StreamAppend(NUT, 1, events(1))]
        with pytest.raises(DuplicateCommand):
            checking.append(again, command=command("buy-1"))
        assert versions(checking.read_stream(NUT)) == [1]

    def test_rows_are_committed_if_a_stream_is_unchanged(self, checking: EventStore) -> None:
        """Only of a store that has transactions: see `TransactionalStore`."""
        transactions = capabilities_of(checking).transactions
        if transactions is None:
            return
        append(checking, BOLT, NO_STREAM, *events(2))

        def check(expected: int) -> Callable[[], Committed]:
            changes = [StreamAppend(BOLT, expected, ())]
            return lambda: transactions.begin().append(changes, command=command("rows-1"))

        with pytest.raises(ConcurrencyError) as caught:
            check(1)()
        assert fields(caught.value) == (str(BOLT), 1, 2)
        assert checking.find_command("rows-1") is None
        assert check(2)() == Committed(0, (2,))
        found = checking.find_command("rows-1")
        assert found is not None
        assert found.position == 0
        with pytest.raises(DuplicateCommand):
            check(2)()
        assert versions(checking.read_stream(BOLT)) == [1, 2]
