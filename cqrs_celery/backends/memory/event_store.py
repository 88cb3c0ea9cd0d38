"""Keep events in this process, with all promises of the port except durability.

A commit happens under one lock, so commits are atomic and positions have no gaps. There are no
queues here: every lease counts as held, and delivery is what `on_commit` does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ...store.capabilities import Capabilities
from ...store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    Lease,
    StoredEvent,
    StreamAppend,
)
from ...store.refusals import (
    check_appends,
    check_command,
    check_stream,
    check_text,
    command_repeated,
    version_conflict,
)
from ...store.stream import ANY_VERSION, StreamName
from .snapshot_store import MemorySnapshotStore


class MemoryEventStore:
    """An EventStore whose events exist as long as the object does. Safe for threads.

    Args:
        on_commit: called after each commit with its events, outside the lock, in the thread that
            committed. An error that it raises reaches that thread, but the commit stands.
        clock: returns seconds that never decrease.
    """

    def __init__(
        self,
        *,
        on_commit: Callable[[Sequence[StoredEvent]], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_commit = on_commit
        self._clock = clock
        self._lock = threading.Lock()
        self._events: list[StoredEvent] = []
        self._streams: dict[StreamName, list[StoredEvent]] = {}
        self._outcomes: dict[str, tuple[CommandOutcome, float]] = {}
        self._commits: dict[tuple[str, ...], Committed] = {}
        self._snapshots = MemorySnapshotStore()

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do in addition to the port."""
        return Capabilities(
            delivers=self.delivers, snapshots=self, checks_versions=True, is_in_process=True
        )

    @property
    def delivers(self) -> bool:
        """Whether a commit's events are passed to a function."""
        return self._on_commit is not None

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams, all or none; see `EventStore.append`."""
        check_appends(appends)
        check_command(command)
        event_ids = tuple(event.event_id for append in appends for event in append.events)
        with self._lock:
            if event_ids in self._commits:
                return self._commits[event_ids]
            self._check(appends, command)
            stored = self._write(appends)
            if command is not None:
                outcome = CommandOutcome(len(self._events), command.outcome)
                self._outcomes[command.command_id] = outcome, self._clock() + command.ttl_s
            committed = self._commits[event_ids] = Committed(
                position=len(self._events),
                versions=tuple(len(self._streams[append.stream]) for append in appends),
            )
        if self._on_commit is not None:
            self._on_commit(stored)
        return committed

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return a stream's events in order; see `EventStore.read_stream`."""
        check_stream(stream)
        end = None if limit is None else after_version + limit
        with self._lock:
            return self._streams.get(stream, [])[after_version:end]

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the store's events in order; see `EventStore.read_all`."""
        with self._lock:
            end = None if limit is None else after_position + limit
            return self._events[after_position:end]

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return the outcome of a committed command; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        with self._lock:
            return self._outcome(command_id)

    def snapshots(self) -> MemorySnapshotStore:
        """Return the store of the streams' snapshots, which exists as long as this store."""
        return self._snapshots

    def close(self) -> None:
        """Do nothing: there are no connections, and the events stay."""

    def _check(self, appends: Sequence[StreamAppend], command: CommandRecord | None) -> None:
        if command is not None:
            outcome = self._outcome(command.command_id)
            if outcome is not None:
                raise command_repeated(command.command_id, outcome)
        for append in appends:
            version = len(self._streams.get(append.stream, ()))
            if append.expected_version not in (ANY_VERSION, version):
                raise version_conflict(
                    append.stream, expected=append.expected_version, found=version
                )

    def _write(self, appends: Sequence[StreamAppend]) -> list[StoredEvent]:
        stored = []
        for append in appends:
            stream = self._streams.setdefault(append.stream, [])
            for event in append.events:
                entry = StoredEvent(append.stream, len(stream) + 1, len(self._events) + 1, event)
                stream.append(entry)
                self._events.append(entry)
                stored.append(entry)
        return stored

    def _outcome(self, command_id: str) -> CommandOutcome | None:
        outcome, expires_at_s = self._outcomes.get(command_id, (None, 0.0))
        return outcome if self._clock() < expires_at_s else None
