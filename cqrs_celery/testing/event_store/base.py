"""What the tests of every event store share: a fixture, data, and helpers."""

# ruff: noqa: S101  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
import pytest

from ...errors import ConcurrencyError, CQRSError
from ...messages.metadata import Metadata, new_id
from ...store.capabilities import capabilities_of
from ...store.events import (
    CommandRecord,
    Committed,
    NewEvent,
    StoredEvent,
    StreamAppend,
)
from ...store.ports import EventStore
from ...store.stream import StreamName

R = TypeVar("R")

#: How many threads race.
THREADS: Final = 8

BOLT: Final = StreamName("inventory", "InventoryItem", "bolt")
NUT: Final = StreamName("inventory", "InventoryItem", "nut")

#: Data that PostgreSQL's jsonb does not take as they are.
WITH_NUL: Final = b'{"name":"a\\u0000b"}'

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

#: The places of an event's metadata, each of which a store keeps.
TRACE: Final = (*Metadata.__struct_fields__, "context's name")

#: Ids that a careless store takes for one: by case, by trailing space, by Unicode's two ways.
LOOKALIKES: Final = [("bolt", "BOLT"), ("bolt", "bolt "), ("caf\u00e9", "cafe\u0301"), ("1", "01")]


class StoreTests:
    """The base of the tests: a store, and the promises that it may leave out.

    Attributes:
        has_gapless_positions: see `EventStoreContract`.
        keeps_bytes: see `EventStoreContract`.
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

    @pytest.fixture
    def checking(self, store: EventStore) -> EventStore:
        """Return the store if it declares that it checks versions."""
        if not capabilities_of(store).checks_versions:
            pytest.skip("the store does not declare that it checks versions")
        return store

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


def traced(**texts: str) -> Metadata:
    """Return metadata with texts in places of `TRACE`."""
    context = {}
    if "context" in texts:
        context["user_id"] = texts.pop("context")
    if "context's name" in texts:
        context[texts.pop("context's name")] = "u7"
    return msgspec.convert({**texts, "context": context}, Metadata)


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
