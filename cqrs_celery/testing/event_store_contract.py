"""What every event store passes.

Give the class a store, and pytest runs it:

    class TestMyStore(EventStoreContract):
        @pytest.fixture
        def store(self): return MyStore(...)

The store is new and empty for each test. Only the port is used, and what the store declares by its
`capabilities`. What needs an engine is not here: lost leases, delivery, the end of a command's time
to live, a server that does not answer.

A store that does not declare that it checks versions skips the tests of that. Two promises a store
may leave out, where its database does not keep them; its class of tests says so:
`has_gapless_positions`, `keeps_bytes`.

The tests are in `event_store/`, by theme. This class gathers them.
"""

from __future__ import annotations

from .event_store.base import (
    BOLT,
    LOOKALIKES,
    NOT_KEPT,
    NUT,
    STRANGE_IDS,
    THREADS,
    TRACE,
    append,
    command,
    event,
    events,
    fields,
    outcome_of,
    positions,
    race,
    versions,
)
from .event_store.capabilities import CapabilityTests
from .event_store.checks import CheckTests
from .event_store.commands import CommandTests
from .event_store.commits import CommitTests
from .event_store.content import ContentTests
from .event_store.races import RaceTests
from .event_store.reading import ReadingTests
from .event_store.versions import VersionTests

__all__ = [
    "BOLT",
    "LOOKALIKES",
    "NOT_KEPT",
    "NUT",
    "STRANGE_IDS",
    "THREADS",
    "TRACE",
    "EventStoreContract",
    "append",
    "command",
    "event",
    "events",
    "fields",
    "outcome_of",
    "positions",
    "race",
    "versions",
]


class EventStoreContract(
    ReadingTests,
    VersionTests,
    CommitTests,
    CommandTests,
    ContentTests,
    RaceTests,
    CapabilityTests,
    CheckTests,
):
    """The tests of the EventStore port.

    Attributes:
        has_gapless_positions: positions count from 1 without gaps. If not, they increase, and a
            refused or failed append may leave numbers out.
        keeps_bytes: an event's data come back byte for byte. If not, as the same JSON.
    """
