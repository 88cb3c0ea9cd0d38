"""Keep events in PostgreSQL. An append is one statement, and holds up no other one.

A position is a number from a sequence, so appends that run at once may commit in another order
than that of their numbers, and one that is rolled back leaves its numbers out. A reader that sees a
gap asks who may still fill it: every append holds, shared, one advisory lock that it took before
its first number. When those that held it when the gap was seen have ended, what is still missing
will not come. No other transaction delays a reader, however long it is open.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, Engine, Text, cast, text

from ...messages.metadata import Metadata
from ...store.events import CommandRecord, Committed, Lease, NewEvent
from ..sql.batch import Batch, CommandRefused, VersionRefused
from ..sql.event_store import SqlEventStore, encode, reading_from
from ..sql.failures import Failure
from ..sql.leading import Leadership
from .driver import prepare_driver

#: Names the advisory lock of appends, together with the number of the events' table.
LOCK_CLASS: Final = 1_668_444_019

#: Seconds that a reader waits at a gap, at most, before it returns what stands in front of it.
GAP_WAIT_S: Final = 2.0

#: Seconds between two looks at who may still fill it.
GAP_LOOK_S: Final = 0.002

#: A function's name and its parameters' types.
Function = tuple[str, tuple[str, ...]]

_APPEND: Final[Function] = (
    "cqrs_append_v1",
    (
        "integer[]", "text[]", "text[]", "text[]", "text[]", "bigint[]", "integer[]", "jsonb",
        "text", "text", "bigint",
    ),
)  # fmt: skip

_APPEND_ONE: Final[Function] = (
    "cqrs_append_one_v1",
    (
        "text", "text", "text", "text", "bigint",
        "text", "text", "integer", "jsonb", "jsonb", "timestamptz",
        "text", "text", "bigint",
    ),
)  # fmt: skip

#: The transactions that append now.
_APPENDING: Final = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = :lock_class AND objid = 'cqrs_events'::regclass AND objsubid = 1"
).bindparams(lock_class=LOCK_CLASS)

_LAST: Final = text("SELECT max(global_position) FROM cqrs_events")

#: Another number than that of appends, for the same table.
_LEAD: Final = text(
    f"SELECT pg_try_advisory_lock(({LOCK_CLASS + 2}::bigint << 32)"
    " | 'cqrs_events'::regclass::oid::bigint)"
)

_LOCK: Final = text(
    f"SELECT pg_advisory_xact_lock_shared(({LOCK_CLASS}::bigint << 32)"
    " | 'cqrs_events'::regclass::oid::bigint)"
)


class _Row(msgspec.Struct):
    """Be an event as the function takes it, with its stream's index and its place behind it."""

    stream: int
    after: int
    event_id: str
    type: str
    type_version: int
    payload: msgspec.Raw
    metadata: Metadata
    recorded_at: datetime


_NO_COMMAND: Final = (None, None, None)

#: Classes of SQLSTATE, and single ones, by what they mean.
_AWAY: Final = ("08", "53", "57P", "58", "28", "3D")
_BEATEN: Final = ("40001", "40P01", "55P03")
_SCHEMA: Final = ("42P01", "42883", "42703", "3F000")


class PostgresqlEventStore(SqlEventStore):
    """Be an EventStore in PostgreSQL, from version 12."""

    # jsonb keeps values, not spaces and the order of keys.
    keeps_bytes = False

    def __init__(self, engine: Engine, **options: Any) -> None:
        prepare_driver(engine)
        super().__init__(engine, **options)
        # Connections that are ours until the store is closed; their pool counts them.
        self._idle: list[Any] = []
        # Every number up to this one that is missing belongs to an append that was rolled back.
        self._settled = 0

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means, by its SQLSTATE."""
        code = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
        if code == "23505":
            return Failure.TAKEN
        if code in _BEATEN:
            return Failure.BEATEN
        if code in _SCHEMA:
            return Failure.SCHEMA
        if code.startswith(_AWAY) or (
            not code and type(error).__name__ in {"OperationalError", "InterfaceError"}
        ):
            return Failure.AWAY
        return Failure.OTHER

    def _reading(self, engine: Engine) -> Engine:
        # A single statement needs no BEGIN and no ROLLBACK around it.
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def _as_text(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)

    def _time(self, time: datetime) -> datetime:
        return time

    def _lock(self, connection: Connection) -> None:
        connection.execute(_LOCK)

    def lead(self) -> Leadership | None:
        """Return what makes a relay the active one; None if another one is."""
        return self.lead_by_lock(_LEAD)

    # ------------------------------------------------------------ append

    def _write_alone(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        call = _call_of(batch, command)
        self.check_lease(lease)
        pooled = self._take()
        try:
            committed = _append(pooled.dbapi_connection, call, prepared=pooled.info)
        except (VersionRefused, CommandRefused):
            self._idle.append(pooled)
            raise
        except BaseException as error:
            pooled.invalidate(error)
            raise
        self._idle.append(pooled)
        return committed

    def _take(self) -> Any:
        """Return a connection that commits each statement.

        They are kept: to take one from SQLAlchemy's pool and give it back costs as much as all else
        that an append does here.
        """
        try:
            return self._idle.pop()
        except IndexError:
            pooled: Any = self.engine.raw_connection()
            pooled.dbapi_connection.autocommit = True
            return pooled

    def close(self) -> None:
        """Give back connections; the store may be used again and makes new ones."""
        while self._idle:
            pooled = self._idle.pop()
            pooled.dbapi_connection.autocommit = False
            pooled.close()
        super().close()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        for pooled in self._idle:
            pooled.detach()
        self._idle.clear()
        super().forget_connections()

    def write(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in a transaction that is open."""
        return _append(connection.connection.dbapi_connection, _call_of(batch, command))

    def _row(self, stream_id: int, version: int, event: NewEvent) -> dict[str, Any]:
        return {**super()._row(stream_id, version, event), "payload": _jsonb(event.data).decode()}

    # ------------------------------------------------------------ read

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        statement, what = self._select_all(after_position, limit), reading_from(after_position)
        rows = self._rows(statement, what)
        if not rows or rows[-1].position == after_position + len(rows):
            return rows
        # On a replica nobody holds the lock, and a commit may have overtaken an earlier one.
        if self._has_replica:
            rows = self._rows(statement, what, self._primary_reader)
        if self._gap(rows, after_position) < len(rows) and self._settle_gaps(what):
            rows = self._rows(statement, what, self._primary_reader)
        return rows[: self._gap(rows, after_position)]

    def _gap(self, rows: Sequence[Any], after_position: int) -> int:
        """Return the number of rows before which nothing is missing that may still come."""
        before = max(after_position, self._settled)
        for index, row in enumerate(rows):
            if row.position > before + 1:
                return index
            before = max(before, row.position)
        return len(rows)

    def _settle_gaps(self, what: str) -> bool:
        """Wait until no number that is missing can appear; returns False if it takes too long."""
        deadline = time.monotonic() + GAP_WAIT_S
        last = self._rows(_LAST, what, self._primary_reader)[0][0] or 0
        # Whoever took a number below that holds the lock now, or has ended, and is seen.
        appending = self._appending(what)
        while appending:
            if time.monotonic() > deadline:
                return False
            time.sleep(GAP_LOOK_S)
            appending &= self._appending(what)
        self._settled = max(self._settled, last)
        return True

    def _appending(self, what: str) -> set[str]:
        return {row[0] for row in self._rows(_APPENDING, what, self._primary_reader)}


def _call_of(batch: Batch, command: CommandRecord | None) -> tuple[Function, Sequence[Any]]:
    """Return the function that appends a batch, and its arguments."""
    appends, events = batch.appends, batch.events
    recorded = (command.command_id, command.outcome, command.ttl_s) if command else _NO_COMMAND
    if len(events) == 1:
        stream, event = appends[0].stream, events[0]
        return _APPEND_ONE, (
            batch.keys[0], *stream, appends[0].expected_version,
            event.event_id, event.type, event.type_version, _jsonb(event.data).decode(),
            encode(event.metadata).decode(), event.timestamp,
            *recorded,
        )  # fmt: skip
    keys = list(batch.keys)
    streams = [append.stream for append in appends]
    return _APPEND, (
        sorted(range(1, len(keys) + 1), key=lambda index: keys[index - 1]),
        keys,
        [stream.application for stream in streams],
        [stream.aggregate_type for stream in streams],
        [stream.aggregate_id for stream in streams],
        [append.expected_version for append in appends],
        [len(append.events) for append in appends],
        encode(
            [
                _Row(
                    index,
                    after,
                    event.event_id,
                    event.type,
                    event.type_version,
                    msgspec.Raw(_jsonb(event.data)),
                    event.metadata,
                    event.timestamp,
                )
                for index, append in enumerate(appends, 1)
                for after, event in enumerate(append.events, 1)
            ]
        ).decode(),
        *recorded,
    )


def _jsonb(data: bytes) -> bytes:
    r"""Return an event's data as jsonb takes them.

    It has no \u0000 and no half of a surrogate pair: such data become a JSON string that holds
    their JSON.
    """
    if b"\\u" in data and (b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data):
        return encode(data.decode())
    return data


def _append(
    connection: Any,
    call: tuple[Function, Sequence[Any]],
    *,
    prepared: dict[Any, Any] | None = None,
) -> Committed:
    """Call the function on the driver's own connection.

    Args:
        connection: the driver's.
        call: the function and its arguments.
        prepared: belongs to the connection, and remembers what is prepared on it; None to prepare
            nothing.

    Raises:
        VersionRefused: a stream is at another version.
        CommandRefused: the command has committed before.
        Exception: the driver's.
    """
    function, arguments = call
    with connection.cursor() as cursor:
        try:
            if prepared is None:
                cursor.execute(_select(function), arguments)
            else:
                cursor.execute(_prepared(cursor, function, prepared), arguments)
        except Exception as raised:
            error: Any = raised
            code = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None)
            if code == "CQ001":
                index, _, found = error.diag.message_primary.partition(",")
                raise VersionRefused(int(index) - 1, int(found)) from None
            if code == "CQ002":
                raise CommandRefused from None
            raise
        position, *versions = cursor.fetchone()[0]
    return Committed(position, tuple(versions))


@cache
def _select(function: Function) -> str:
    name, types = function
    return f"SELECT {name}({', '.join(f'%s::{one}' for one in types)})"


def _prepared(cursor: Any, function: Function, prepared: dict[Any, Any]) -> str:
    """Return the statement that calls a function, which the server has parsed by then."""
    name, types = function
    statement: str | None = prepared.get(name)
    if statement is None:
        if hasattr(cursor, "mogrify"):
            # psycopg2 sends texts: the server knows what it has parsed by a name.
            numbers = ", ".join(f"${number}" for number in range(1, len(types) + 1))
            cursor.execute(f"PREPARE {name} ({', '.join(types)}) AS SELECT {name}({numbers})")
            statement = _select(function).replace("SELECT", "EXECUTE")
        else:
            statement = _select(function)  # psycopg prepares by itself what comes again
        prepared[name] = statement
    return statement
