"""Keep events in a SQL database: what all engines share.

An append is one transaction, whatever the number of streams and events, and all statements in it
are for many rows. What is here works on every engine that SQLAlchemy knows the words of; an
engine's folder has its locks, its errors, its order of positions, and a faster append where there
is one.

Positions increase in the order in which events may be read; an append that was rolled back may
leave a number out. Delivery is the relay's.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, TypeVar, cast

import msgspec
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Delete,
    Engine,
    Select,
    Table,
    TextClause,
    Update,
    bindparam,
    case,
    delete,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.pool import Pool

from ...errors import InvalidSetting, SchemaError, StoreError, StoreUnavailable
from ...messages.compression import COMPRESSED
from ...messages.metadata import NO_METADATA, Metadata
from ...store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    History,
    KnownEvent,
    Lease,
    NewEvent,
    StoredEvent,
    StreamAppend,
)
from ...store.paging import read_to_the_end
from ...store.reading import Reads, replica_may_answer
from ...store.refusals import (
    check_command,
    check_stream,
    check_text,
    command_repeated,
    lease_lost,
    version_conflict,
)
from ...store.stream import ANY_VERSION, StreamName
from .batch import Batch, CommandRefused, VersionRefused, beaten, beaten_repeatedly
from .connecting import age, connect
from .engine import where
from .failures import AlreadyThere, Failure, TransactionBeaten, reaching
from .leading import Leadership
from .outbox import SqlOutbox
from .snapshot_store import SqlSnapshotStore
from .tables import commands, events, identity, streams
from .transaction import SqlTransaction

R = TypeVar("R")

#: Tells whether a worker still holds its message.
LeaseCheck = Callable[[Lease], bool]

#: How often a transaction or a statement is tried that the database ends for the sake of another
#: transaction, or that meets another one's row.
ATTEMPTS: Final = 5

#: Rows in one INSERT: SQL Server takes 2,100 values a statement.
INSERT_ROWS: Final = 200

#: Expired commands that one transaction deletes, at most. From 5,000 on, SQL Server takes a lock on
#: the whole table in place of locks on rows.
FORGET_ROWS: Final = 4_000

#: Seconds for which that may take, also where all else is given less.
PURGE_S: Final = 30.0

#: The highest number that a database holds as a version, a position or a limit.
MOST: Final = 2**63 - 1

#: Seconds for which a stream that was written here, or found changed, is not read from a replica.
FRESH_S: Final = 10.0

#: Streams of which that is remembered.
FRESH_STREAMS: Final = 10_000

#: Where a row of a history has the event's id, if it has it.
_ID_IN_HISTORY: Final = 4

#: The parts of a stream's name, where they are the first columns of a row.
_NAME = itemgetter(0, 1, 2)

_decode_metadata = msgspec.json.Decoder(Metadata).decode
_decode_text = msgspec.json.Decoder(str).decode
encode = msgspec.json.Encoder().encode


class SqlEventStore:
    """Be an EventStore in a SQL database. Safe for threads, and for processes forked from this one.

    Args:
        engine: connects to the database; it may be the application's own.
        read_engine: connects to a replica, for reading; what it does not have yet is read from the
            database itself where it matters.
        lease_check: tells whether a lease is held; asked right before a commit under one. The
            database can't ask the queue by itself, so a lease that ends between the answer and the
            commit goes unnoticed: then the streams' versions decide.
        is_own_engine: the engine was made for this store alone, so its connections may be kept.

    Attributes:
        engine: as given.
        where: names the database in errors, without credentials.
        lease_check: as given; the application sets it where its broker can tell.
        on_commit: called after each commit with events, to wake the relay.
        outbox: what the relay needs.
    """

    #: How often `attempt` tries.
    attempts = ATTEMPTS

    #: Whether an event's data come back byte for byte, rather than as the same JSON.
    keeps_bytes = True

    def __init__(
        self,
        engine: Engine,
        *,
        read_engine: Engine | None = None,
        lease_check: LeaseCheck | None = None,
        is_own_engine: bool = False,
    ) -> None:
        self.engine = engine
        self._is_own_engine = is_own_engine
        self.where = where(engine.url)
        self._reader = self._reading(read_engine or engine)
        self._has_replica = read_engine is not None
        self._primary_reader = self._reading(engine)
        self._committing = engine.execution_options(isolation_level="AUTOCOMMIT")
        self.lease_check = lease_check
        self.on_commit: Callable[[], object] | None = None
        self.outbox = SqlOutbox(self)
        self._fresh: dict[StreamName, float] = {}
        # A row's columns are in the order of _stored's parameters.
        self._columns = (
            self._position().label("position"),
            events.c.version,
            events.c.event_id,
            events.c.type,
            events.c.type_version,
            self._as_text(events.c.payload).label("payload"),
            self._as_text(events.c.metadata).label("metadata"),
            events.c.recorded_at,
        )
        # Made once: to make it takes as long as to run it.
        self._select_stream = self._select_from_stream(self._columns)
        self._select_history = self._select_from_stream(self._columns_of_history())
        _all_stores.add(self)

    def _columns_of_history(self) -> Sequence[ColumnElement[Any]]:
        """Return what a replay needs of a row.

        That is, the data of events that are not known, and the ids of those that are, and of the
        stream's last one.
        """
        _, version, event_id, name, type_version, payload, _, _ = self._columns
        last = select(streams.c.version).where(streams.c.stream_key == bindparam("key"))
        is_known = version <= bindparam("known")
        return (
            version,
            name,
            type_version,
            case((version > bindparam("known"), payload)).label("payload"),
            case((or_(is_known, version == last.scalar_subquery()), event_id)).label("event_id"),
        )

    def _select_from_stream(self, columns: Iterable[ColumnElement[Any]]) -> Select[Any]:
        return (
            select(*columns)
            .where(
                events.c.stream_id
                == select(streams.c.stream_id)
                .where(streams.c.stream_key == bindparam("key"))
                .scalar_subquery(),
                events.c.version > bindparam("after"),
            )
            .order_by(events.c.version)
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"

    # ------------------------------------------------------------ what differs by engine

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means."""
        raise NotImplementedError

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL is to blame for the server's being away, as far as can be told."""
        return False

    def _reading(self, engine: Engine) -> Engine:
        """Return an engine whose connections are for single statements that read."""
        return engine

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the database's clock, in milliseconds since 1970."""
        raise NotImplementedError

    def _position(self) -> ColumnElement[int]:
        """Return the position of an event."""
        return events.c.global_position

    def _order(self) -> ColumnElement[Any]:
        """Return what events are ordered by, which has an index."""
        return self._position()

    def _after(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands behind a position."""
        return events.c.global_position > position

    def _up_to(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands at a position or in front of it."""
        return events.c.global_position <= position

    def _as_text(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return JSON as a text."""
        return column

    def _key(self, stream: StreamName) -> str:
        """Return what a stream is found by."""
        return stream.key

    def changed(self, connection: Connection, statement: Update | Delete) -> int:
        """Run a statement that changes rows; returns how many it has changed."""
        return connection.execute(statement).rowcount

    def serves(self, connection: Any) -> bool:
        """Return whether the server serves a connection of the driver's, and lets it write."""
        try:
            self.engine.dialect.do_ping(connection)
        except self.engine.dialect.loaded_dbapi.Error:
            return False
        return True

    def is_away(self, error: BaseException) -> bool:
        """Return whether a statement of the application's own failed since the server is away."""
        return self.failure(error) is Failure.AWAY

    def is_deadlock(self, error: BaseException) -> bool:
        """Return whether the database ended the transaction in a statement of the application's.

        That is, for the sake of another transaction: by a deadlock or a serialization failure.
        """
        return self.failure(error) is Failure.BEATEN

    def forget_lost(self) -> None:
        """Let no connection be used again that was made before now: one of them was lost."""
        age(self.engine)
        age(self._reader)
        self._forget_known()

    def _forget_known(self) -> None:
        """Forget what is known of the database, which may be another one, or an earlier state."""
        self.outbox.forget()

    def check_kept(self, connection: Any) -> None:
        """Check that what a connection has committed is in the database that others see.

        Raises:
            StoreUnavailable: it is lost.
        """

    def forget_lost_replica(self) -> None:
        """Let no connection to the replica be used again that was made before now."""
        age(self._reader)

    def on_begin(self, connection: Connection) -> None:
        """Do what a transaction needs that begins with statements of the application's own."""

    def _lock(self, connection: Connection) -> None:
        """Take what an append needs before it reads."""

    def _locked(self, statement: Select[Any]) -> Select[Any]:
        """Return a statement that locks the streams that it reads until the transaction's end."""
        return statement.with_for_update()

    def _delete_unlocked(self, first: Select[Any], is_expired: ColumnElement[bool]) -> Delete:
        """Return a statement that deletes commands, and passes over those that are locked.

        Args:
            first: selects the ids of those to delete.
            is_expired: holds for them.
        """
        return delete(commands).where(commands.c.command_id.in_(first), is_expired)

    def _time(self, time: datetime) -> datetime:
        """Return a time as the driver takes it."""
        return time.astimezone(UTC).replace(tzinfo=None)

    def _as_utc(self, time: Any) -> datetime:
        """Return a time of what a row has."""
        return cast(datetime, time.replace(tzinfo=UTC))

    # ------------------------------------------------------------ append

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
                    committed = self._write_alone(batch, command, lease)
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
        """Find out what an append's refusal comes from.

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
        known = self._find(batch)
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

    def begin(self) -> SqlTransaction:
        """Begin a transaction to which a later append belongs, for rows of one's own beside it.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        return SqlTransaction(self)

    def transact(self, what: str, work: Callable[[Connection], R]) -> R:
        """Do something in a transaction of its own; again, while others are in its way.

        Args:
            what: is being done: "register shop.till".
            work: does it, on the connection that it is given.

        Returns:
            What `work` does, once that is committed.

        Raises:
            StoreUnavailable: the server does not answer.
            SchemaError: the tables are missing or of another version.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """

        def do() -> R:
            with connect(self) as connection:
                with connection.begin():
                    self.on_begin(connection)
                    done = work(connection)
                self.check_kept(connection)
                return done

        return self.attempt(what, do)

    def run_each(self, what: str, work: Callable[[Connection], R]) -> R:
        """Run statements of which each commits by itself; again, while others are in the way.

        Unlike in a transaction, a process that is frozen between two of them has nothing locked.

        Args:
            what: is being done: "delete expired commands".
            work: does it, on the connection that it is given; it may be repeated.

        Returns:
            What `work` does.

        Raises:
            StoreUnavailable: the server does not answer.
            SchemaError: the tables are missing or of another version.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """

        def do() -> R:
            with self._committing.connect() as connection:
                return work(connection)

        return self.attempt_anew(what, do)

    def committed(self, batch: Batch) -> None:
        """Do what follows a commit."""
        self._note(batch)
        if self.on_commit is not None:
            self.on_commit()

    def leadership(self, application: str, *, broker: str) -> Leadership:
        """Return what makes a process's relay the active one of an application.

        Args:
            application: whose relay.
            broker: names what it relays to, without credentials.

        Raises:
            InvalidText: the application's name can't be kept by every store.
        """
        check_text(application, "the application's name")
        return Leadership(self, application, broker=broker)

    def check_lease(self, lease: Lease | None) -> None:
        """Check that a lease is held, as far as can be told.

        Raises:
            LeaseLost: it is not.
        """
        if lease is not None and self.lease_check is not None and not self.lease_check(lease):
            raise lease_lost(lease)

    def _write_alone(
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
        """Append in a transaction that is open; raises as `_write_alone` does."""
        return self.write_portably(connection, batch, command)

    def write_portably(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in a transaction that is open, with statements that every engine knows.

        Statements: one to lock and read the streams; one to change them, two if some are new; one
        for up to 200 events, on SQL Server for each; one for the position; two for a command.
        """
        self._lock(connection)
        if command is not None:
            self._refuse_known(connection, command)
        keys = [self._key(append.stream) for append in batch.appends]
        found = self._lock_streams(connection, keys)
        for index, (append, key) in enumerate(zip(batch.appends, keys, strict=True)):
            version = found.get(key, (0, 0))[1]
            if append.expected_version not in (ANY_VERSION, version):
                raise VersionRefused(index, version)
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
        rows, versions = [], []
        for append, key in zip(batch.appends, keys, strict=True):
            stream_id, version = found[key]
            for event in append.events:
                version += 1
                rows.append(self._row(stream_id, version, event))
            versions.append(version)
        connection.execute(
            update(streams)
            .where(streams.c.stream_id == bindparam("of_stream"))
            .values(version=bindparam("to_version")),
            [
                {"of_stream": found[key][0], "to_version": version}
                for key, version in zip(keys, versions, strict=True)
            ],
        )
        self._insert_events(connection, rows)
        last = rows[-1]
        position = connection.execute(
            select(self._position().label("position")).where(
                events.c.stream_id == last["stream_id"], events.c.version == last["version"]
            )
        ).scalar_one()
        if command is not None:
            self.remember(connection, command, position)
        return Committed(position, tuple(versions))

    def remember(self, connection: Connection, command: CommandRecord, position: int) -> None:
        """Record a command in a transaction that is open; one that has expired is replaced.

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
            "expires_at": self._time(now + timedelta(seconds=command.ttl_s)),
        }
        self._insert(connection, commands, [row])

    def _refuse_known(self, connection: Connection, command: CommandRecord) -> None:
        if connection.execute(self._select_command(command.command_id)).first() is not None:
            raise CommandRefused(command.command_id)

    def _select_command(self, command_id: str) -> Select[Any]:
        return select(commands.c.position, commands.c.outcome).where(
            commands.c.command_id == command_id,
            commands.c.expires_at > self._time(datetime.now(UTC)),
        )

    def _lock_streams(
        self, connection: Connection, keys: Sequence[str]
    ) -> dict[str, tuple[int, int]]:
        """Lock the streams that there are; returns the id and version of each by its key."""
        found: dict[str, tuple[int, int]] = {}
        for at in range(0, len(keys), INSERT_ROWS):
            statement = (
                select(streams.c.stream_key, streams.c.stream_id, streams.c.version)
                .where(streams.c.stream_key.in_(keys[at : at + INSERT_ROWS]))
                .order_by(streams.c.stream_key)
            )
            for key, stream_id, version in connection.execute(self._locked(statement)):
                found[key] = stream_id, version
        return found

    def _row(self, stream_id: int, version: int, event: NewEvent) -> dict[str, Any]:
        return {
            "stream_id": stream_id,
            "version": version,
            "event_id": event.event_id,
            "type": event.type,
            "type_version": event.type_version,
            "payload": event.data.decode(),
            "metadata": encode(event.metadata).decode(),
            "recorded_at": self._time(event.timestamp),
        }

    def _insert_events(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert events, whose positions increase in the order of the rows."""
        self._insert(connection, events, rows)

    def _insert(
        self, connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]
    ) -> None:
        for at in range(0, len(rows), INSERT_ROWS):
            connection.execute(insert(table).values(rows[at : at + INSERT_ROWS]))

    def _find(self, batch: Batch) -> Committed | None:
        """Return where an append ended whose events are there; None if they are not."""
        keys = [self._key(append.stream) for append in batch.appends]
        found: dict[str, tuple[int, int]] = {}
        for at in range(0, len(keys), INSERT_ROWS):
            part = slice(at, at + INSERT_ROWS)
            statement = (
                select(events.c.event_id, self._position(), events.c.version)
                .join(streams, streams.c.stream_id == events.c.stream_id)
                .where(
                    streams.c.stream_key.in_(keys[part]),
                    events.c.event_id.in_(batch.last_ids[part]),
                )
            )
            if batch.last_versions:
                versions = sorted(set(batch.last_versions[part]))
                statement = statement.where(events.c.version.in_(versions))
            for event_id, position, version in self._rows(
                statement, str(batch), self._primary_reader
            ):
                found[event_id] = position, version
        if not found.keys() >= set(batch.last_ids):
            return None
        numbers = [found[event_id] for event_id in batch.last_ids]
        return Committed(numbers[-1][0], tuple(version for _, version in numbers))

    # ------------------------------------------------------------ read

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return a stream's events in order; see `EventStore.read_stream`.

        From a replica, if there is one, and the stream was not just written here.
        """
        check_stream(stream)
        if after_version >= MOST or (limit is not None and limit <= 0):
            return []
        limit = limit and min(limit, MOST)
        return self._stored(stream, self._rows_of_stream(stream, max(after_version, 0), limit))

    def read_history(
        self, stream: StreamName, *, known: Sequence[KnownEvent] = ()
    ) -> History | None:
        """Return what a replay needs of a stream's events; see `HistoryStore.read_history`.

        From a replica where `read_stream` reads from it, unless that does not have what is known.
        """
        check_stream(stream)
        rows = self._rows_of_history(stream, known)
        if self._has_replica and not _have(rows, known):
            # The replica may not have got there yet.
            with Reads(from_primary=True):
                rows = self._rows_of_history(stream, known)
        if not _have(rows, known):
            return None
        newer = rows[known[-1][0] - known[0][0] + 1 :] if known else rows
        return History(
            [
                (
                    version,
                    name,
                    type_version,
                    (payload if payload[0] == "{" else _text_of(payload)).encode(),
                )
                for version, name, type_version, payload, _ in newer
            ],
            newer[-1][_ID_IN_HISTORY] or "" if newer else "",
        )

    def _rows_of_history(self, stream: StreamName, known: Sequence[KnownEvent]) -> Sequence[Any]:
        """Return the rows of a history, from the first event that is known on."""
        return self._rows(
            self._select_history,
            f"read {stream}",
            self._reader_of(stream),
            key=self._key(stream),
            after=known[0][0] - 1 if known else 0,
            known=known[-1][0] if known else 0,
        )

    def _rows_of_stream(
        self, stream: StreamName, after_version: int, limit: int | None
    ) -> Sequence[Any]:
        statement = self._select_stream
        if limit is not None:
            statement = statement.limit(limit)
        return self._rows(
            statement,
            f"read {stream}",
            self._reader_of(stream),
            key=self._key(stream),
            after=after_version,
        )

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Return the store's events in the order of their positions; see `EventStore.read_all`.

        Only those before which none can appear any more: the numbers that are left out are those of
        appends that were rolled back.
        """
        if limit is None:
            return read_to_the_end(self.read_all, after_position)
        if after_position >= MOST or limit <= 0:
            return []
        found: list[StoredEvent] = []
        page = self._rows_of_all(max(after_position, 0), min(limit, MOST))
        for stream, rows in self._by_stream(page):
            found += self._stored(stream, rows)
        return found

    def _by_stream(self, rows: Sequence[Any]) -> Iterator[tuple[StreamName, Iterable[Any]]]:
        """Yield the runs of `_rows_of_all` that are one stream's, as `_stored` takes them."""
        names: dict[tuple[str, str, str], StreamName] = {}
        for parts, group in groupby(rows, _NAME):
            stream = names.get(parts)
            if stream is None:
                stream = names[parts] = StreamName(*parts)
            yield stream, [row[3:] for row in group]

    def _stored(self, stream: StreamName, rows: Iterable[Any]) -> list[StoredEvent]:
        """Return a stream's events from rows with the columns of `self._columns`."""
        as_utc = self._as_utc
        return [
            StoredEvent(
                stream,
                version,
                position,
                NewEvent(
                    event_id,
                    name,
                    type_version,
                    as_utc(at),
                    (payload if payload[0] == "{" else _text_of(payload)).encode(),
                    NO_METADATA
                    if metadata is None or metadata == "{}"
                    else _decode_metadata(metadata),
                ),
            )
            for position, version, event_id, name, type_version, payload, metadata, at in rows
        ]

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        """Return what `read_all` reads; an engine where commits overtake each other sees to it."""
        reader = self._reader if self._may_ask_replica() else self._primary_reader
        statement = self._select_all(after_position, limit)
        return self._rows(statement, reading_from(after_position), reader)

    def _select_all(self, after_position: int, limit: int) -> Select[Any]:
        # The limit comes before the join: the page is cut from the index of positions.
        page = (
            select(*self._columns, events.c.stream_id)
            .where(self._after(after_position))
            .order_by(self._order())
            .limit(limit)
            .subquery("page")
        )
        columns = [page.c[column.name] for column in self._columns]
        return (
            select(
                streams.c.application, streams.c.aggregate_type, streams.c.aggregate_id, *columns
            )
            .select_from(page.join(streams, streams.c.stream_id == page.c.stream_id))
            .order_by(page.c.position)
        )

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return what a command recorded when it committed; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        rows = self._rows(
            self._select_command(command_id),
            f"look up the command {command_id}",
            self._primary_reader,
        )
        return CommandOutcome(rows[0][0], rows[0][1]) if rows else None

    def forget_expired_commands(self) -> int:
        """Delete commands that have expired, `FORGET_ROWS` at most; the relay does this.

        It is one statement, and passes over rows that another transaction has locked: it waits for
        none, and nobody for it but while the database runs it.

        Returns:
            The number of those deleted. Call it again until that is 0; then what is left, somebody
            else is deleting, or has locked.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way again and again.
        """
        # Looked at twice: one of them may be recorded anew before its row is locked.
        is_expired = commands.c.expires_at <= self._time(datetime.now(UTC))
        first = (
            select(commands.c.command_id)
            .where(is_expired)
            .order_by(commands.c.expires_at)
            .limit(FORGET_ROWS)
        )
        statement = self._delete_unlocked(first, is_expired)
        with self.limited(PURGE_S):
            return self.run_each(
                "delete expired commands", lambda connection: self.changed(connection, statement)
            )

    def check_replica(self) -> None:
        """Check that the replica, if there is one, is one of this database.

        Raises:
            InvalidSetting: it is another database, or one that has no tables of a store.
            SchemaError: the tables of this database are missing.
            StoreUnavailable: a server does not answer.
        """
        if not self._has_replica:
            return
        own = self.outbox.store_id
        try:
            statement = select(identity.c.store_id)
            rows = self._rows(statement, "look up the replica's id", self._reader)
        except SchemaError as error:
            raise self._no_replica("it has no tables of an event store", own) from error
        found = str(rows[0][0]) if rows else "none"
        if found != own:
            raise self._no_replica(f"its store's id is {found}", own)

    def _no_replica(self, found: str, own: str) -> InvalidSetting:
        return InvalidSetting(
            f"the read URL leads to {where(self._reader.url)}, which is no replica of {self.where}:"
            f" {found}, expected the id {own}. Correct cqrs_event_store_read_url, or remove it.",
            setting="cqrs_event_store_read_url",
            accepted="the URL of a replica of the event store's database",
        )

    def snapshots(self) -> SqlSnapshotStore:
        """Return the store of the streams' snapshots, in the same database."""
        return SqlSnapshotStore(self)

    def close(self) -> None:
        """Give back connections; the store may be used again and makes new ones."""
        self.engine.dispose()
        self._reader.dispose()
        self._forget_known()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        # Kept, since the garbage collector would close them, which is the parent's to do.
        _of_parent.extend((self.engine.pool, self._reader.pool))
        self.engine.dispose(close=False)
        self._reader.dispose(close=False)

    # ------------------------------------------------------------ inside

    def _rows(
        self,
        statement: Select[Any] | CompoundSelect[Any] | TextClause,
        what: str,
        reader: Engine | None = None,
        **parameters: Any,
    ) -> Sequence[Any]:
        """Run a statement that reads; a connection that was lost in the pool is replaced once.

        Args:
            statement: what to run.
            what: is being done: "read Order-42".
            reader: connects to the primary, which is the default, or to the replica.
            parameters: of the statement.
        """
        reader = reader or self._primary_reader

        def read() -> Sequence[Any]:
            with reader.connect() as connection:
                return connection.execute(statement, parameters).all()

        is_replica = self._has_replica and reader is self._reader
        return self.attempt_anew(what, read, is_replica=is_replica)

    def attempt_anew(self, what: str, do: Callable[[], R], *, is_replica: bool = False) -> R:
        """Do as `attempt`, once more if a connection was lost in the pool; it may be repeated.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """
        try:
            return self.attempt(what, do, is_replica=is_replica)
        except StoreUnavailable:
            return self.attempt(what, do, is_replica=is_replica)

    def attempt(self, what: str, do: Callable[[], R], *, is_replica: bool = False) -> R:
        """Do something; again, while the database ends it for the sake of another transaction.

        Args:
            what: is being done: "read Order-42".
            do: does it, all or nothing.
            is_replica: whether the replica is asked, which errors then name.

        Returns:
            What `do` does.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way as often as it was tried.
        """
        for attempt in range(1, self.attempts + 1):
            try:
                with self.reach(what, is_replica=is_replica):
                    return do()
            except (AlreadyThere, TransactionBeaten) as error:
                reason = error
                time.sleep(0.001 * attempt)
        raise beaten_repeatedly(what, self.where, self.attempts, reason) from reason

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours for as long as something is done; see `reaching`."""
        # The replica's URL may name another driver.
        engine = self._reader if is_replica else self.engine
        replica = where(engine.url) if is_replica else None
        return reaching(self, what, engine.dialect.loaded_dbapi.Error, replica=replica)

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Let this thread wait for each answer for so long; None for as long as it takes.

        That is for PostgreSQL. Elsewhere the driver's own limits hold.
        """
        return nullcontext()

    def read_from_primary(self, *streams: StreamName) -> None:
        """Read streams from no replica for a while: it may not know them in their newest state."""
        if not self._has_replica:
            return
        until = time.monotonic() + FRESH_S
        if len(self._fresh) > FRESH_STREAMS:
            self._fresh.clear()
        self._fresh.update(dict.fromkeys(streams, until))

    def _note(self, batch: Batch) -> None:
        """Remember which streams a replica may not know in their newest state."""
        if self._has_replica:
            self.read_from_primary(*[append.stream for append in batch.appends])

    def _may_ask_replica(self, stream: StreamName | None = None) -> bool:
        """Return whether the replica may answer the next read: of a stream, or of all events."""
        if not self._has_replica:
            return False
        if stream is not None and self._fresh.get(stream, 0.0) > time.monotonic():
            return False
        return replica_may_answer()

    def _reader_of(self, stream: StreamName) -> Engine:
        return self._reader if self._may_ask_replica(stream) else self._primary_reader


def _have(rows: Sequence[Any], known: Sequence[KnownEvent]) -> bool:
    """Return whether the rows of a history, which begin with the first known event, have all."""
    for version, event_id in known:
        at = version - known[0][0]
        if at >= len(rows) or (rows[at][0], rows[at][_ID_IN_HISTORY]) != (version, event_id):
            return False
    return True


def reading_from(after_position: int) -> str:
    """Return what a read of everything is called in errors."""
    return f"read from position {after_position + 1}"


def _text_of(payload: str) -> str:
    """Return an event's data.

    What PostgreSQL's jsonb can't hold lies there as a text: JSON inside a JSON string. So do
    compressed data, which are such a string themselves.
    """
    is_wrapped = payload[0] == '"' and not payload.startswith(COMPRESSED)
    return _decode_text(payload) if is_wrapped else payload


#: The stores of this process. After a fork their connections are the parent's.
_all_stores: weakref.WeakSet[SqlEventStore] = weakref.WeakSet()

#: The pools of the parent process, where this one is a fork.
_of_parent: list[Pool] = []


def _leave_connections_to_the_parent() -> None:
    for store in list(_all_stores):
        store.forget_connections()


os.register_at_fork(after_in_child=_leave_connections_to_the_parent)
