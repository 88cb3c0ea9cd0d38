"""Keep events in PostgreSQL. An append is one statement, and holds up no other one.

A position is a number from a sequence, so appends that run at once may commit in another order
than that of their numbers, and one that is rolled back leaves its numbers out. A reader that sees a
gap asks who may still fill it: every append holds, shared, one advisory lock that it took before
its first number. When those that held it when the gap was seen have ended, what is still missing
will not come. No other transaction delays a reader, however long it is open.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Delete,
    Engine,
    Select,
    Text,
    cast,
    extract,
    func,
    select,
    text,
)

from ...messages.metadata import Metadata
from ...store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    KnownEvent,
    Lease,
    NewEvent,
)
from ...store.refusals import check_text
from ...store.stream import StreamName
from ..sql.batch import Batch, CommandRefused, VersionRefused
from ..sql.event_store import SqlEventStore, encode, reading_from
from ..sql.failures import Failure
from .answering import limit, using, watch_engine, within_limit
from .driver import prepare_driver
from .prepared import KeptConnections, Statement, code_of, function, run_once
from .snapshot_store import PostgresqlSnapshotStore

#: Names the advisory lock of appends, together with the number of the events' table.
LOCK_CLASS: Final = 1_668_444_019

#: Seconds that a reader waits at a gap, at most, before it returns what stands in front of it.
GAP_WAIT_S: Final = 2.0

#: Seconds between two looks at who may still fill it: at first, and at most. An append is short as
#: a rule, and one that is not will be a while.
GAP_LOOK_S: Final = 0.002
GAP_LOOK_MOST_S: Final = 0.1

_APPEND: Final = function(
    "cqrs_append_v1",
    "integer[]", "text[]", "text[]", "text[]", "text[]", "bigint[]", "integer[]", "jsonb",
    "text", "text", "bigint",
)  # fmt: skip

_APPEND_ONE: Final = function(
    "cqrs_append_one_v1",
    "text", "text", "text", "text", "bigint",
    "text", "text", "integer", "jsonb", "jsonb", "timestamptz",
    "text", "text", "bigint",
)  # fmt: skip

_OF_STREAM: Final = (
    " FROM cqrs_events"
    " WHERE stream_id = (SELECT stream_id FROM cqrs_streams WHERE stream_key = $1)"
    " AND version > $2 ORDER BY version"
)

# Times come as texts, which Python reads in half the time that psycopg2 needs to make them.
_READ_STREAM: Final = Statement(
    "cqrs_read_stream",
    ("text", "bigint", "bigint"),
    "SELECT global_position, version, event_id, type, type_version, payload::text,"
    f" NULLIF(metadata, '{{}}')::text, recorded_at::text{_OF_STREAM} LIMIT $3",
)

_READ_HISTORY: Final = Statement(
    "cqrs_read_history",
    ("bigint", "text", "bigint"),
    # A parameter stands in it once, so the last known version is a column.
    "WITH stream AS MATERIALIZED (SELECT stream_id, version AS last, $1 AS known"
    " FROM cqrs_streams WHERE stream_key = $2)"
    " SELECT version, type, type_version,"
    " CASE WHEN version > (SELECT known FROM stream) THEN payload::text END,"
    " CASE WHEN version <= (SELECT known FROM stream) OR version = (SELECT last FROM stream)"
    " THEN event_id END"
    " FROM cqrs_events WHERE stream_id = (SELECT stream_id FROM stream) AND version > $3"
    " ORDER BY version",
)

# Without the names of the streams, which are long and few: they are read once for a page.
_READ_ALL: Final = Statement(
    "cqrs_read_all",
    ("bigint", "bigint"),
    "SELECT stream_id, global_position, version, event_id, type, type_version, payload::text,"
    " NULLIF(metadata, '{}')::text, recorded_at::text FROM cqrs_events"
    " WHERE global_position > $1 ORDER BY global_position LIMIT $2",
)

#: Where the position stands in a row of that.
_AT: Final = 1

_STREAM_ID: Final = itemgetter(0)

_NAMES: Final = Statement(
    "cqrs_read_names",
    ("bigint[]",),
    "SELECT stream_id, application, aggregate_type, aggregate_id FROM cqrs_streams"
    " WHERE stream_id = ANY ($1)",
)

_FIND_COMMAND: Final = Statement(
    "cqrs_find_command",
    ("text",),
    "SELECT position, outcome FROM cqrs_commands WHERE command_id = $1 AND expires_at > now()",
)

#: The transactions that append now, but for one's own. One that was prepared for a two-phase commit
#: holds the lock, too, and has no pid; it keeps its virtual number, from 12.9, 13.5 and 14.1.
_APPENDING: Final = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = :lock_class AND objid = 'cqrs_events'::regclass AND objsubid = 1"
    " AND pid IS DISTINCT FROM pg_backend_pid()"
).bindparams(lock_class=LOCK_CLASS)

#: The last position, and what tells the server's run and the table from all others: a server goes
#: back by being started with other data, or by getting another table.
_PRESENT: Final = text(
    "SELECT coalesce(max(global_position), 0), concat_ws(' ',"
    " (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,"
    " (SELECT oid FROM pg_database WHERE datname = current_database()),"
    " 'cqrs_events'::regclass::oid, pg_relation_filenode('cqrs_events'))"
    " FROM cqrs_events"
)

_LOCK: Final = text(
    f"SELECT pg_advisory_xact_lock_shared(({LOCK_CLASS}::bigint << 32)"
    " | 'cqrs_events'::regclass::oid::bigint)"
)


class Settled(NamedTuple):
    """A position up to which each number that is missing is of an append that was rolled back.

    Attributes:
        position: that one.
        of: tells the server's run and the table of which this is known from all others.
    """

    position: int
    of: str


#: What is known before a gap was ever waited for.
NOT_SETTLED: Final = Settled(0, "")


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

#: A statement was ended: by a timeout, by somebody's request, or as the server shuts down.
QUERY_CANCELED: Final = "57014"

#: A lock was not free, and was not to be waited for (any longer).
LOCK_NOT_AVAILABLE: Final = "55P03"

#: Classes of SQLSTATE, and single ones, by what they mean. 25006: the server takes no writes, since
#: it has become a replica, or is one yet; 25P03, 25P04: it has ended the session, whose transaction
#: took too long; 57014: it has ended a statement, as it does when it shuts down or waits for a
#: standby in vain; 40003: nobody knows whether it did. Not 25P02: there the application has
#: swallowed an error.
_AWAY: Final = (
    "08", "53", "57P", "58", "28", "3D", "25006", "25P03", "25P04", QUERY_CANCELED, "40003",
)  # fmt: skip
_BEATEN: Final = ("40001", "40P01", LOCK_NOT_AVAILABLE)
#: There is no such database, no such user, or its password is another one.
_MISCONFIGURED: Final = ("3D000", "28000", "28P01")
_REFUSED: Final = re.compile(
    r"FATAL: .*((database|role) \".*\" does not exist|authentication failed|no pg_hba\.conf entry)"
    r"|no password supplied"
)
_SCHEMA: Final = ("42P01", "42883", "42703", "3F000")


class PostgresqlEventStore(SqlEventStore):
    """Be an EventStore in PostgreSQL, from version 12."""

    # jsonb keeps values, not spaces and the order of keys.
    keeps_bytes = False

    def __init__(self, engine: Engine, **options: Any) -> None:
        prepare_driver(engine)
        super().__init__(engine, **options)
        watch_engine(engine)
        self._kept = KeptConnections(engine, is_keeping=self._is_own_engine)
        read_engine = options.get("read_engine")
        if read_engine is not None:
            watch_engine(read_engine)
        self._kept_to_read = KeptConnections(read_engine) if read_engine else self._kept
        self._settled = NOT_SETTLED

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means, by its SQLSTATE."""
        code = code_of(error)
        if code == "23505":
            return Failure.TAKEN
        if code in _BEATEN:
            return Failure.BEATEN
        if code in _SCHEMA:
            return Failure.SCHEMA
        if code.startswith(_AWAY) or (not code and _is_of_the_connection(error)):
            return Failure.AWAY
        # "cannot … during recovery": a code of many meanings, the others for good.
        is_recovering = code == "55000" and "recovery" in str(error)
        return Failure.AWAY if is_recovering else Failure.OTHER

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL is to blame for the server's being away.

        At a connection's beginning, the drivers give no SQLSTATE. A server may also speak another
        language than English, which goes unnoticed.
        """
        code = code_of(error)
        return code in _MISCONFIGURED or (not code and bool(_REFUSED.search(str(error))))

    def is_away(self, error: BaseException) -> bool:
        """Return whether a statement of the application's own failed since the server is away.

        One that the server has ended may have been too slow for a `statement_timeout`, and would be
        again and again.
        """
        return super().is_away(error) and code_of(error) != QUERY_CANCELED

    def is_deadlock(self, error: BaseException) -> bool:
        """Return whether the database ended the transaction in a statement of the application's.

        A lock that was not free in time is the application's own choice: NOWAIT, `lock_timeout`.
        """
        return super().is_deadlock(error) and code_of(error) != LOCK_NOT_AVAILABLE

    def serves(self, connection: Any) -> bool:
        """Return whether the server serves a connection of the driver's, and lets it write."""
        before = connection.autocommit
        try:
            # Otherwise the driver would begin a transaction.
            connection.autocommit = True
            try:
                with connection.cursor() as cursor:
                    cursor.execute("SHOW transaction_read_only")
                    (is_read_only,) = cursor.fetchone()
            finally:
                connection.autocommit = before
        except self.engine.dialect.loaded_dbapi.Error:
            return False
        return bool(is_read_only == "off")

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours, and give up what takes too long; see `answering`."""
        return within_limit(super().reach(what, is_replica=is_replica))

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Let this thread wait for each answer for so long; None for as long as it takes."""
        return limit(limit_s)

    def _reading(self, engine: Engine) -> Engine:
        # A single statement needs no BEGIN and no ROLLBACK around it.
        return engine.execution_options(isolation_level="AUTOCOMMIT")

    def _as_text(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return cast(column, Text)

    def _time(self, time: datetime) -> datetime:
        return time

    def _as_utc(self, time: Any) -> datetime:
        read = datetime.fromisoformat(time) if type(time) is str else time
        return read if read.tzinfo is UTC else read.astimezone(UTC)

    def _lock(self, connection: Connection) -> None:
        connection.execute(_LOCK)

    def _delete_unlocked(self, first: Select[Any], is_expired: ColumnElement[bool]) -> Delete:
        # With a name of its own, what is selected is selected once.
        found = first.with_for_update(skip_locked=True).cte("expired")
        return super()._delete_unlocked(select(found), is_expired)

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the server's clock, in milliseconds since 1970."""
        return cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)

    # ------------------------------------------------------------ append

    def _write_alone(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        statement, arguments = _call_of(batch, command)
        self.check_lease(lease)
        try:
            rows = self._kept.run(statement, arguments)
        except Exception as error:
            raise _refusal(error) from error
        return _committed(rows)

    def forget_lost(self) -> None:
        """Let no connection be used again that was made before now: one of them was lost."""
        super().forget_lost()
        self._kept.close()
        self._kept_to_read.close()
        self._settled = NOT_SETTLED

    def forget_lost_replica(self) -> None:
        """Let no connection to the replica be used again that was made before now."""
        super().forget_lost_replica()
        self._kept_to_read.close()

    def close(self) -> None:
        """Give back connections; the store may be used again and makes new ones."""
        self._kept.close()
        self._kept_to_read.close()
        self._settled = NOT_SETTLED
        super().close()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        self._kept.forget()
        self._kept_to_read.forget()
        super().forget_connections()

    def write(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in a transaction that is open."""
        using(connection.connection.dbapi_connection)
        try:
            rows = run_once(connection.connection.dbapi_connection, *_call_of(batch, command))
        except Exception as error:
            raise _refusal(error) from error
        return _committed(rows)

    def _row(self, stream_id: int, version: int, event: NewEvent) -> dict[str, Any]:
        return {**super()._row(stream_id, version, event), "payload": _jsonb(event.data).decode()}

    # ------------------------------------------------------------ read

    def _run(
        self, kept: KeptConnections, what: str, statement: Statement, *arguments: Any
    ) -> list[Any]:
        """Run a statement that reads; a connection that was lost meanwhile is replaced once."""
        is_replica = kept is not self._kept
        do = partial(kept.run, statement, arguments)
        return self.attempt_anew(what, do, is_replica=is_replica)

    def _rows_of_stream(
        self, stream: StreamName, after_version: int, limit: int | None
    ) -> Sequence[Any]:
        arguments = stream.key, after_version, limit
        return self.read_kept(stream, f"read {stream}", _READ_STREAM, *arguments)

    def read_kept(
        self, stream: StreamName, what: str, statement: Statement, *arguments: Any
    ) -> Sequence[Any]:
        """Read of a stream: from a replica, if there is one, and it was not just written here.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        kept = self._kept_to_read if self._may_ask_replica(stream) else self._kept
        return self._run(kept, what, statement, *arguments)

    def snapshots(self) -> PostgresqlSnapshotStore:
        """Return the store of the streams' snapshots, in the same database."""
        return PostgresqlSnapshotStore(self)

    def _rows_of_history(self, stream: StreamName, known: Sequence[KnownEvent]) -> Sequence[Any]:
        first, last = (known[0][0], known[-1][0]) if known else (1, 0)
        arguments = last, stream.key, first - 1
        return self.read_kept(stream, f"read {stream}", _READ_HISTORY, *arguments)

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return what a command recorded when it committed; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        what = f"look up the command {command_id}"
        rows = self._run(self._kept, what, _FIND_COMMAND, command_id)
        return CommandOutcome(*rows[0]) if rows else None

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        what = reading_from(after_position)
        arguments = what, _READ_ALL, after_position, limit
        kept = self._kept_to_read if self._may_ask_replica() else self._kept
        rows = self._run(kept, *arguments)
        if not rows or rows[-1][_AT] == after_position + len(rows):
            return rows
        # On a replica nobody holds the lock, and a commit may have overtaken an earlier one.
        if kept is not self._kept:
            rows = self._run(self._kept, *arguments)
        whole = self._whole(rows, after_position, what)
        if whole < len(rows) and self._settle_gaps(what):
            rows = self._run(self._kept, *arguments)
            whole = self._whole(rows, after_position, what)
        return rows[:whole]

    def _by_stream(self, rows: Sequence[Any]) -> Iterator[tuple[StreamName, Iterable[Any]]]:
        wanted = {row[0] for row in rows}
        names: dict[int, StreamName] = {}
        # What was read from the primary may not have come to the replica.
        is_replica_asked = self._may_ask_replica()
        for kept in (self._kept_to_read, self._kept) if is_replica_asked else (self._kept,):
            if missing := wanted - names.keys():
                found = self._run(kept, "read the streams' names", _NAMES, list(missing))
                names |= {stream_id: StreamName(*parts) for stream_id, *parts in found}
        for stream_id, group in groupby(rows, _STREAM_ID):
            yield names[stream_id], [row[1:] for row in group]

    def _whole(self, rows: Sequence[Any], after_position: int, what: str) -> int:
        """Return the number of rows before which nothing is missing that may still come."""
        gap = _gap(rows, after_position)
        known = self._settled
        if gap == len(rows) or known.position < rows[gap][_AT] - 1:
            return gap
        # Asked after the rows were read: if the server went back before, numbers that were settled
        # may come again. A pooler may have hidden that it was away.
        last, of = self._present(what)
        if of != known.of or last < known.position:
            return gap
        return _gap(rows, max(after_position, known.position))

    def _settle_gaps(self, what: str) -> bool:
        """Wait until no number that is missing can appear; returns False if it takes too long."""
        deadline = time.monotonic() + GAP_WAIT_S
        last, of = self._present(what)
        # Whoever took a number below that holds the lock now, or has ended, and is seen.
        appending = self._appending(what)
        wait_s = GAP_LOOK_S
        while appending:
            if time.monotonic() > deadline:
                return False
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, GAP_LOOK_MOST_S)
            appending &= self._appending(what)
        known = self._settled
        if known.of != of or known.position < last:
            self._settled = Settled(last, of)
        return True

    def _present(self, what: str) -> Settled:
        """Return the last position now, and of which run of the server and which table it is."""
        return Settled(*self._rows(_PRESENT, what, self._primary_reader)[0])

    def _appending(self, what: str) -> set[str]:
        return {row[0] for row in self._rows(_APPENDING, what, self._primary_reader)}


def _gap(rows: Sequence[Any], settled: int) -> int:
    """Return the index of the first row in front of which a number above `settled` is missing."""
    before = settled
    for index, row in enumerate(rows):
        if row[_AT] > before + 1:
            return index
        before = max(before, row[_AT])
    return len(rows)


def _call_of(batch: Batch, command: CommandRecord | None) -> tuple[Statement, Sequence[Any]]:
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


def _is_of_the_connection(error: BaseException) -> bool:
    """Return whether a driver's error without a code comes from a connection that broke.

    psycopg2 has a bare DatabaseError for some; both drivers derive from the others.
    """
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError"}) or (
        type(error).__name__ == "DatabaseError"
    )


def _refusal(error: Any) -> Exception:
    """Return what an error of the functions means: theirs, or the driver's own as it is."""
    code = code_of(error)
    if code == "CQ001":
        index, _, found = error.diag.message_primary.partition(",")
        return VersionRefused(int(index) - 1, int(found))
    return CommandRefused() if code == "CQ002" else error


def _committed(rows: Sequence[Any]) -> Committed:
    position, *versions = rows[0][0]
    return Committed(position, tuple(versions))
