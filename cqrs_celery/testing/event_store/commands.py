"""The tests of commands, each of which commits once."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import pytest

from ...errors import ConcurrencyError, DuplicateCommand
from ...store.events import (
    CommandOutcome,
)
from ...store.ports import EventStore
from ...store.stream import NO_STREAM
from .base import BOLT, LOOKALIKES, NUT, STRANGE_IDS, StoreTests, append, command, event


class CommandTests(StoreTests):
    """The tests of commands, each of which commits once."""

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
