"""Keep events in PostgreSQL. An append is one statement, and appends do not block each other.

Positions are numbers from a sequence, so there are gaps between them; see `gaps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Engine

from ...store.events import CommandOutcome, CommandRecord, Committed, KnownEvent, Lease
from ...store.refusals import check_text
from ...store.stream import StreamName
from ..sql.batch import Batch
from ..sql.event_store import SqlEventStore
from ..sql.reading import reading_from
from .answering import limit, using, watch_engine, within_limit
from .appending import call_of, committed_at, refusal_of
from .driver import prepare_driver
from .gaps import AT, Gaps
from .prepared import KeptConnections, Statement, run_once
from .rules import PostgresqlRules
from .snapshot_store import PostgresqlSnapshotStore

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


class PostgresqlEventStore(SqlEventStore):
    """An EventStore in PostgreSQL, from version 12.

    Attributes:
        kept: connections on which statements run that the server has parsed already.
        kept_to_read: those to the replica; the same as `kept` without one.
        gaps: what is known of the numbers that are missing.
    """

    rules = PostgresqlRules()

    def __init__(self, engine: Engine, **options: Any) -> None:
        prepare_driver(engine)
        super().__init__(engine, **options)
        watch_engine(engine)
        self.kept = KeptConnections(engine, is_keeping=self.is_own_engine)
        read_engine = options.get("read_engine")
        if read_engine is not None:
            watch_engine(read_engine)
        self.kept_to_read = KeptConnections(read_engine) if read_engine else self.kept
        self.gaps = Gaps(self)

    def reach(self, what: str, *, is_replica: bool = False) -> AbstractContextManager[None]:
        """Turn the driver's errors into ours, and give up what takes too long; see `answering`."""
        return within_limit(super().reach(what, is_replica=is_replica))

    def limited(self, limit_s: float | None) -> AbstractContextManager[None]:
        """Limit how long this thread waits for each answer; None removes the limit."""
        return limit(limit_s)

    def _append_in_own_transaction(
        self, batch: Batch, command: CommandRecord | None, lease: Lease | None
    ) -> Committed:
        statement, arguments = call_of(batch, command)
        self.check_lease(lease)
        try:
            rows = self.kept.run(statement, arguments)
        except Exception as error:
            raise refusal_of(error) from error
        return committed_at(rows)

    def forget_lost(self) -> None:
        """Replace each connection made before now at its next use: one of them was lost."""
        super().forget_lost()
        self.kept.close()
        self.kept_to_read.close()
        self.gaps.forget()

    def forget_lost_replica(self) -> None:
        """Replace each connection to the replica made before now at its next use."""
        super().forget_lost_replica()
        self.kept_to_read.close()

    def close(self) -> None:
        """Release all connections. The store stays usable and reconnects on demand."""
        self.kept.close()
        self.kept_to_read.close()
        self.gaps.forget()
        super().close()

    def forget_connections(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        self.kept.forget()
        self.kept_to_read.forget()
        super().forget_connections()

    def write(
        self, connection: Connection, batch: Batch, command: CommandRecord | None
    ) -> Committed:
        """Append in a transaction that is open."""
        using(connection.connection.dbapi_connection)
        try:
            rows = run_once(connection.connection.dbapi_connection, *call_of(batch, command))
        except Exception as error:
            raise refusal_of(error) from error
        return committed_at(rows)

    def run_kept(
        self, kept: KeptConnections, what: str, statement: Statement, *arguments: Any
    ) -> list[Any]:
        """Run a statement that reads. A connection that was lost meanwhile is replaced once."""
        is_replica = kept is not self.kept
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
        kept = self.kept_to_read if self.may_ask_replica(stream) else self.kept
        return self.run_kept(kept, what, statement, *arguments)

    def snapshots(self) -> PostgresqlSnapshotStore:
        """Return the store of the streams' snapshots, in the same database."""
        return PostgresqlSnapshotStore(self, self.read_kept)

    def _rows_of_history(self, stream: StreamName, known: Sequence[KnownEvent]) -> Sequence[Any]:
        first, last = (known[0][0], known[-1][0]) if known else (1, 0)
        arguments = last, stream.key, first - 1
        return self.read_kept(stream, f"read {stream}", _READ_HISTORY, *arguments)

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return what a command recorded when it committed; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        what = f"look up the command {command_id}"
        rows = self.run_kept(self.kept, what, _FIND_COMMAND, command_id)
        return CommandOutcome(*rows[0]) if rows else None

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        what = reading_from(after_position)
        arguments = what, _READ_ALL, after_position, limit
        kept = self.kept_to_read if self.may_ask_replica() else self.kept
        rows = self.run_kept(kept, *arguments)
        if not rows or rows[-1][AT] == after_position + len(rows):
            return rows
        # On a replica nobody holds the lock, and a commit may have overtaken an earlier one.
        if kept is not self.kept:
            rows = self.run_kept(self.kept, *arguments)
        whole = self.gaps.whole(rows, after_position, what)
        if whole < len(rows) and self.gaps.settle(what):
            rows = self.run_kept(self.kept, *arguments)
            whole = self.gaps.whole(rows, after_position, what)
        return rows[:whole]

    def _by_stream(self, rows: Sequence[Any]) -> Iterator[tuple[StreamName, Iterable[Any]]]:
        wanted = {row[0] for row in rows}
        names: dict[int, StreamName] = {}
        # What was read from the primary may not have come to the replica.
        is_replica_asked = self.may_ask_replica()
        for kept in (self.kept_to_read, self.kept) if is_replica_asked else (self.kept,):
            if missing := wanted - names.keys():
                found = self.run_kept(kept, "read the streams' names", _NAMES, list(missing))
                names |= {stream_id: StreamName(*parts) for stream_id, *parts in found}
        for stream_id, group in groupby(rows, _STREAM_ID):
            yield names[stream_id], [row[1:] for row in group]
