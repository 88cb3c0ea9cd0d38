"""Keep events in an SQLite file. It has one writer at a time, so positions come in commit order.

Readers and the writer don't wait for each other (WAL). A commit is on the disk when `append`
returns.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine

from ...errors import StoreUnavailable
from ...store.events import CommandRecord, Committed, Lease, NewEvent
from ...store.stream import ANY_VERSION
from ..sql.appending import encode
from ..sql.batch import Batch, CommandRefused, VersionRefused
from ..sql.event_store import SqlEventStore
from .forking import between_forks
from .replaced import FileWatch
from .rules import SqliteRules

logger = logging.getLogger(__name__)

_COMMAND: Final = "SELECT 1 FROM cqrs_commands WHERE command_id = ? AND expires_at > ?"
_STREAM: Final = "SELECT stream_id, version FROM cqrs_streams WHERE stream_key = ?"
_LAST: Final = "SELECT coalesce(max(global_position), 0) FROM cqrs_events"
_NEW_STREAM: Final = (
    "INSERT INTO cqrs_streams (stream_key, application, aggregate_type, aggregate_id, version)"
    " VALUES (?, ?, ?, ?, ?)"
)
_OLD_STREAM: Final = "UPDATE cqrs_streams SET version = ? WHERE stream_id = ?"
_EVENT: Final = (
    "INSERT INTO cqrs_events (global_position, stream_id, version, event_id, type, type_version,"
    " payload, metadata, recorded_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_REMEMBER: Final = (
    "INSERT OR REPLACE INTO cqrs_commands (command_id, position, outcome, expires_at)"
    " VALUES (?, ?, ?, ?)"
)


class SqliteEventStore(SqlEventStore):
    """An EventStore in an SQLite file."""

    rules = SqliteRules()

    def __init__(self, engine: Engine, **options: Any) -> None:
        super().__init__(engine, **options)
        self._watch_file()

    def _watch_file(self) -> None:
        # The engine may outlive this store.
        forget = weakref.WeakMethod(self._on_replaced)
        FileWatch(self.engine, lambda: (forget() or _nothing)())

    def _on_replaced(self) -> None:
        logger.warning(
            "the file of %s was replaced or removed; its connections are opened anew", self.where
        )
        self.forget_lost()

    def check_kept(self, connection: Any) -> None:
        """Check that what a connection has committed is in the file that others open."""
        if not FileWatch.is_file_of(connection):
            raise StoreUnavailable(
                f"what was committed is lost: the file of {self.where} was replaced or removed"
                " meanwhile, as by the restoring of a backup. Repeat the command."
            )

    @property
    def file(self) -> Path:
        """The database's file."""
        return Path(str(self.engine.url.database))

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours, and keep forks waiting, while something is done."""
        return _between_forks(super().reach(what, is_replica=is_replica))

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""
        with between_forks:
            super().close()

    def _append_in_own_transaction(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        pooled = self.engine.raw_connection()
        try:
            connection: Any = pooled.dbapi_connection
            connection.execute("BEGIN IMMEDIATE")
            committed = _append(connection, batch, command)
            self.check_lease(lease)
            connection.commit()
            self.check_kept(pooled)
        finally:
            # The pool rolls back what is not committed.
            pooled.close()
        return committed

    def write(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in a transaction that is open."""
        self.rules.lock_append(connection)
        return _append(connection.connection.dbapi_connection, batch, command)


def _append(connection: Any, batch: Batch, command: CommandRecord | None) -> Committed:
    """Append with the driver's own statements, as the only writer.

    Raises:
        VersionRefused: a stream is at another version.
        CommandRefused: the command has committed before.
        sqlite3.Error: the driver's.
    """
    execute = connection.execute
    now = datetime.now(UTC)
    if command is not None and execute(_COMMAND, (command.command_id, _time(now))).fetchone():
        raise CommandRefused
    found = [execute(_STREAM, (key,)).fetchone() or (None, 0) for key in batch.keys]
    for index, (append, (_, version)) in enumerate(zip(batch.appends, found, strict=True)):
        if append.expected_version not in (ANY_VERSION, version):
            raise VersionRefused(index, version)
    (position,) = execute(_LAST).fetchone()
    rows: list[Sequence[Any]] = []
    versions = []
    for append, key, (stream_id, version) in zip(batch.appends, batch.keys, found, strict=True):
        versions.append(version + len(append.events))
        if stream_id is None:
            row = (key, *append.stream, versions[-1])
            stream_id = execute(_NEW_STREAM, row).lastrowid
        elif append.events:
            execute(_OLD_STREAM, (versions[-1], stream_id))
        for one in append.events:
            position, version = position + 1, version + 1
            rows.append((position, stream_id, version, *_columns(one)))
    if len(rows) == 1:
        execute(_EVENT, rows[0])
    else:
        connection.executemany(_EVENT, rows)
    if command is not None:
        expires_at = _time(now + timedelta(seconds=command.ttl_s))
        execute(_REMEMBER, (command.command_id, position, command.outcome, expires_at))
    return Committed(position, tuple(versions))


def _columns(one: NewEvent) -> tuple[Any, ...]:
    return (
        one.event_id,
        one.type,
        one.type_version,
        one.data.decode(),
        encode(one.metadata).decode(),
        _time(one.timestamp),
    )


def _nothing() -> None:
    """Do what a store does that is no more."""


def _time(time: datetime) -> str:
    # As SQLAlchemy writes it. strftime takes ten times as long.
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(" ", "microseconds")


@contextmanager
def _between_forks(reaching: AbstractContextManager[None]) -> Iterator[None]:
    with between_forks, reaching:
        yield
