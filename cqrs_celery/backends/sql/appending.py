"""Append to a SQL database: one transaction, however many streams and events.

All statements in it are for many rows. They work on every engine that SQLAlchemy has a dialect for;
an engine's folder has its rules, and a faster append where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, Table, bindparam, delete, insert, select, update

from ...errors import StoreError, StoreUnavailable
from ...store.events import CommandRecord, Committed, Lease, NewEvent, StreamAppend
from ...store.refusals import check_command, command_repeated, lease_lost, version_conflict
from ...store.relay_ports import LeaseCheck
from ...store.stream import ANY_VERSION
from .access import ATTEMPTS
from .batch import Batch, CommandRefused, VersionRefused, beaten
from .failures import AlreadyThere, TransactionBeaten
from .reading import SqlReading
from .rules import INSERT_ROWS
from .tables import commands, events, streams

_TO_VERSION: Final = (
    update(streams)
    .where(streams.c.stream_id == bindparam("of_stream"))
    .values(version=bindparam("to_version"))
)

encode = msgspec.json.Encoder().encode


class SqlAppending(SqlReading):
    """The appending part of a SQL event store.

    Attributes:
        lease_check: tells whether a lease is held; asked right before a commit under one. The
            application sets it where its broker can tell.
        on_commit: called after each commit with events, to wake the relay.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        read_engine: Engine | None = None,
        lease_check: LeaseCheck | None = None,
        is_own_engine: bool = False,
    ) -> None:
        super().__init__(engine, read_engine=read_engine, is_own_engine=is_own_engine)
        self.lease_check = lease_check
        self.on_commit: Callable[[], object] | None = None

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events to their streams, all or none; see `EventStore.append`.

        Raises:
            TransactionConflict: the database ended the transaction, again and again, for the sake
                of others. It is a ConcurrencyError; nothing was written.
            SchemaError: the tables are missing or of another version.
        """
        batch = Batch.of(appends)
        check_command(command)
        if command is None:
            command = batch.as_command
        may_reconnect = True
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self.reach(str(batch)):
                    committed = self._append_in_own_transaction(batch, command, lease)
                self.committed(batch)
                return committed
            except StoreUnavailable:
                # A connection may have been lost while it lay in the pool. The append may have
                # happened, but then it is known.
                if not may_reconnect:
                    raise
                may_reconnect = False
            except (VersionRefused, CommandRefused, AlreadyThere, TransactionBeaten) as refusal:
                known = self.settle(batch, command, refusal, may_repeat=attempt < ATTEMPTS)
                if known is not None:
                    return known
                time.sleep(0.001 * attempt)
        raise StoreUnavailable(f"could not {batch}: {self.where} was away in between")

    def settle(
        self,
        batch: Batch,
        command: CommandRecord | None,
        refusal: Exception,
        *,
        may_repeat: bool,
    ) -> Committed | None:
        """Find out why an append was refused.

        Args:
            batch: what was to be written.
            command: recorded with it.
            refusal: why it was not.
            may_repeat: whether it may be tried again.

        Returns:
            Where the same append ended before, if its events are there; None to try again.

        Raises:
            ConcurrencyError, DuplicateCommand, StoreError: what it comes from.
        """
        self._note(batch)
        known = self.find_committed(batch)
        if known is not None:
            return known
        if command is not None and isinstance(refusal, (CommandRefused, AlreadyThere)):
            found = self.find_command(command.command_id)
            if found is not None:
                raise command_repeated(command.command_id, found)
        if isinstance(refusal, VersionRefused):
            append = batch.appends[refusal.index]
            raise version_conflict(
                append.stream, expected=append.expected_version, found=refusal.found
            )
        if may_repeat:
            return None
        if isinstance(refusal, TransactionBeaten):
            raise beaten(batch, refusal) from refusal
        raise StoreError(
            f"could not {batch}: {self.where} refused it again and again ({refusal})"
        ) from refusal

    def committed(self, batch: Batch) -> None:
        """Do what follows a commit."""
        self._note(batch)
        if self.on_commit is not None:
            self.on_commit()

    def check_lease(self, lease: Lease | None) -> None:
        """Check that a lease is held, if the application can tell.

        Raises:
            LeaseLost: it is not.
        """
        if lease is not None and self.lease_check is not None and not self.lease_check(lease):
            raise lease_lost(lease)

    def _append_in_own_transaction(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        """Append in a transaction of its own.

        Raises:
            VersionRefused: a stream is at another version.
            CommandRefused: the command has committed before.
            LeaseLost: the lease is not held.
            Exception: the driver's.
        """
        with self.engine.begin() as connection:
            committed = self.write(connection, batch, command)
            self.check_lease(lease)
        return committed

    def write(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in an open transaction; raises as `_append_in_own_transaction` does."""
        return self.write_portably(connection, batch, command)

    def check_versions(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Check the versions of a batch without events in an open transaction, until its end.

        The command is recorded at position 0.

        Raises:
            VersionRefused: a stream is at another version.
            CommandRefused: the command has committed before.
        """
        self.rules.lock_append(connection)
        self._find_streams(connection, batch)
        if command is not None:
            self.remember(connection, command, 0)
        return Committed(0, tuple(append.expected_version for append in batch.appends))

    def write_portably(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in an open transaction, with statements that every engine understands.

        Statements: one to lock and read the streams; one to change them, two if some are new; one
        for up to 200 events, on SQL Server for each; one for the position; two for a command.
        """
        self.rules.lock_append(connection)
        if command is not None:
            self._refuse_known(connection, command)
        keys, found = self._find_streams(connection, batch)
        self._make_streams(connection, batch, keys, found)
        rows, versions, changes = [], [], []
        for append, key in zip(batch.appends, keys, strict=True):
            stream_id, version = found[key]
            for event in append.events:
                version += 1
                rows.append(self._row(stream_id, version, event))
            versions.append(version)
            if append.events:
                changes.append({"of_stream": stream_id, "to_version": version})
        connection.execute(_TO_VERSION, changes)
        self._insert_events(connection, rows)
        position = self._position_of(connection, rows[-1])
        if command is not None:
            self.remember(connection, command, position)
        return Committed(position, tuple(versions))

    def remember(self, connection: Connection, command: CommandRecord, position: int) -> None:
        """Record a command in an open transaction; an expired record is replaced.

        Raises:
            CommandRefused: it has committed before.
        """
        self._refuse_known(connection, command)
        now = datetime.now(UTC)
        connection.execute(delete(commands).where(commands.c.command_id == command.command_id))
        row = {
            "command_id": command.command_id,
            "position": position,
            "outcome": command.outcome,
            "expires_at": self.rules.to_time(now + timedelta(seconds=command.ttl_s)),
        }
        self._insert(connection, commands, [row])

    def _refuse_known(self, connection: Connection, command: CommandRecord) -> None:
        if connection.execute(self.select_command(command.command_id)).first() is not None:
            raise CommandRefused(command.command_id)

    def _find_streams(
        self, connection: Connection, batch: Batch
    ) -> tuple[list[str], dict[str, tuple[int, int]]]:
        """Lock a batch's streams, and check their versions.

        Returns:
            The streams' keys, and the id and version of each stream that exists, by its key.

        Raises:
            VersionRefused: a stream is at another version.
        """
        keys = [self.rules.key(append.stream) for append in batch.appends]
        found = self._lock_streams(connection, keys)
        for index, (append, key) in enumerate(zip(batch.appends, keys, strict=True)):
            version = found.get(key, (0, 0))[1]
            if append.expected_version not in (ANY_VERSION, version):
                raise VersionRefused(index, version)
        return keys, found

    def _lock_streams(
        self, connection: Connection, keys: Sequence[str]
    ) -> dict[str, tuple[int, int]]:
        """Lock the streams that exist; returns the id and version of each by its key."""
        found: dict[str, tuple[int, int]] = {}
        for at in range(0, len(keys), INSERT_ROWS):
            statement = (
                select(streams.c.stream_key, streams.c.stream_id, streams.c.version)
                .where(streams.c.stream_key.in_(keys[at : at + INSERT_ROWS]))
                .order_by(streams.c.stream_key)
            )
            for key, stream_id, version in connection.execute(self.rules.locked(statement)):
                found[key] = stream_id, version
        return found

    def _make_streams(
        self,
        connection: Connection,
        batch: Batch,
        keys: Sequence[str],
        found: dict[str, tuple[int, int]],
    ) -> None:
        """Make the streams that are not in `found`, and add their ids and versions to it."""
        new = [
            (append, key)
            for append, key in zip(batch.appends, keys, strict=True)
            if key not in found
        ]
        if new:
            rows = [
                {**append.stream._asdict(), "stream_key": key, "version": 0} for append, key in new
            ]
            self._insert(connection, streams, rows)
            found |= self._lock_streams(connection, [key for _, key in new])

    def _position_of(self, connection: Connection, row: Mapping[str, Any]) -> int:
        """Return the position that the database gave to an event."""
        position: int = connection.execute(
            select(self.rules.position().label("position")).where(
                events.c.stream_id == row["stream_id"], events.c.version == row["version"]
            )
        ).scalar_one()
        return position

    def _row(self, stream_id: int, version: int, event: NewEvent) -> dict[str, Any]:
        return {
            "stream_id": stream_id,
            "version": version,
            "event_id": event.event_id,
            "type": event.type,
            "type_version": event.type_version,
            "payload": self.rules.to_json(event.data),
            "metadata": encode(event.metadata).decode(),
            "recorded_at": self.rules.to_time(event.timestamp),
        }

    def _insert_events(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert events, whose positions increase in the order of the rows."""
        self._insert(connection, events, rows, size=self.rules.events_per_insert)

    def _insert(
        self,
        connection: Connection,
        table: Table,
        rows: Sequence[Mapping[str, Any]],
        *,
        size: int = INSERT_ROWS,
    ) -> None:
        for at in range(0, len(rows), size):
            connection.execute(insert(table).values(rows[at : at + size]))

    def find_committed(self, batch: Batch) -> Committed | None:
        """Return where an append ended, if its events are in the store; None otherwise."""
        keys = [self.rules.key(append.stream) for append in batch.written]
        found: dict[str, tuple[int, int]] = {}
        for at in range(0, len(keys), INSERT_ROWS):
            part = slice(at, at + INSERT_ROWS)
            statement = (
                select(events.c.event_id, self.rules.position(), events.c.version)
                .join(streams, streams.c.stream_id == events.c.stream_id)
                .where(
                    streams.c.stream_key.in_(keys[part]),
                    events.c.event_id.in_(batch.last_ids[part]),
                )
            )
            if batch.last_versions:
                versions = sorted(set(batch.last_versions[part]))
                statement = statement.where(events.c.version.in_(versions))
            for event_id, position, version in self.rows(
                statement, str(batch), self.primary_reader
            ):
                found[event_id] = position, version
        if not batch.last_ids or not found.keys() >= set(batch.last_ids):
            return None
        ends = tuple(
            found[append.events[-1].event_id][1] if append.events else append.expected_version
            for append in batch.appends
        )
        return Committed(found[batch.last_ids[-1]][0], ends)

    def _note(self, batch: Batch) -> None:
        """Remember which streams a replica may have in an older state."""
        if self.has_replica:
            self.read_from_primary(*[append.stream for append in batch.appends])
