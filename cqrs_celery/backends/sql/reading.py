"""Reading events from a SQL database: a stream, a history, everything in order; and commands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Engine, Select, bindparam, case, or_, select

from ...messages.compression import COMPRESSED
from ...messages.metadata import NO_METADATA, Metadata
from ...store.events import CommandOutcome, History, KnownEvent, NewEvent, StoredEvent
from ...store.paging import read_to_the_end
from ...store.reading import Reads
from ...store.refusals import check_stream, check_text
from ...store.stream import StreamName
from .access import SqlAccess
from .tables import commands, events, streams

#: The highest number that a database holds as a version, a position or a limit.
MOST: Final = 2**63 - 1

#: Where a row of a history has the event's id, if it has it.
_ID_IN_HISTORY: Final = 4

#: The parts of a stream's name, where they are the first columns of a row.
_NAME: Final = itemgetter(0, 1, 2)

_decode_metadata = msgspec.json.Decoder(Metadata).decode
_decode_text = msgspec.json.Decoder(str).decode


class SqlReading(SqlAccess):
    """The reading part of a SQL event store.

    Attributes:
        columns: of an event, in the order in which `stored` takes them.
    """

    def __init__(
        self, engine: Engine, *, read_engine: Engine | None = None, is_own_engine: bool = False
    ) -> None:
        super().__init__(engine, read_engine=read_engine, is_own_engine=is_own_engine)
        self.columns = (
            self.rules.position().label("position"),
            events.c.version,
            events.c.event_id,
            events.c.type,
            events.c.type_version,
            self.rules.as_text(events.c.payload).label("payload"),
            self.rules.as_text(events.c.metadata).label("metadata"),
            events.c.recorded_at,
        )
        # Made once: to make it takes as long as to run it.
        self._select_stream = self._select_from_stream(self.columns)
        self._select_history = self._select_from_stream(self._columns_of_history())

    def _columns_of_history(self) -> Sequence[ColumnElement[Any]]:
        """Return what a replay needs of a row.

        That is, the data of events that are not known, and the ids of those that are, and of the
        stream's last one.
        """
        _, version, event_id, name, type_version, payload, _, _ = self.columns
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
        return self.stored(stream, self._rows_of_stream(stream, max(after_version, 0), limit))

    def _rows_of_stream(
        self, stream: StreamName, after_version: int, limit: int | None
    ) -> Sequence[Any]:
        statement = self._select_stream
        if limit is not None:
            statement = statement.limit(limit)
        return self.rows(
            statement,
            f"read {stream}",
            self.reader_of(stream),
            key=self.rules.key(stream),
            after=after_version,
        )

    def read_history(
        self, stream: StreamName, *, known: Sequence[KnownEvent] = ()
    ) -> History | None:
        """Return what a replay needs of a stream's events; see `HistoryStore.read_history`.

        From a replica where `read_stream` reads from it, unless that does not have what is known.
        """
        check_stream(stream)
        rows = self._rows_of_history(stream, known)
        if self.has_replica and not _have(rows, known):
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
        return self.rows(
            self._select_history,
            f"read {stream}",
            self.reader_of(stream),
            key=self.rules.key(stream),
            after=known[0][0] - 1 if known else 0,
            known=known[-1][0] if known else 0,
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
            found += self.stored(stream, rows)
        return found

    def _rows_of_all(self, after_position: int, limit: int) -> Sequence[Any]:
        """Return what `read_all` reads; an engine where commits overtake each other sees to it."""
        reader = self.reader if self.may_ask_replica() else self.primary_reader
        statement = self._select_all(after_position, limit)
        return self.rows(statement, reading_from(after_position), reader)

    def _select_all(self, after_position: int, limit: int) -> Select[Any]:
        # The limit comes before the join: the page is cut from the index of positions.
        page = (
            select(*self.columns, events.c.stream_id)
            .where(self.rules.after(after_position))
            .order_by(self.rules.order())
            .limit(limit)
            .subquery("page")
        )
        columns = [page.c[column.name] for column in self.columns]
        return (
            select(
                streams.c.application, streams.c.aggregate_type, streams.c.aggregate_id, *columns
            )
            .select_from(page.join(streams, streams.c.stream_id == page.c.stream_id))
            .order_by(page.c.position)
        )

    def _by_stream(self, rows: Sequence[Any]) -> Iterator[tuple[StreamName, Iterable[Any]]]:
        """Yield the runs of `_rows_of_all` that are one stream's, as `stored` takes them."""
        names: dict[tuple[str, str, str], StreamName] = {}
        for parts, group in groupby(rows, _NAME):
            stream = names.get(parts)
            if stream is None:
                stream = names[parts] = StreamName(*parts)
            yield stream, [row[3:] for row in group]

    def stored(self, stream: StreamName, rows: Iterable[Any]) -> list[StoredEvent]:
        """Return a stream's events from rows with the columns of `columns`."""
        as_utc = self.rules.as_utc
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

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return what a command recorded when it committed; see `EventStore.find_command`."""
        check_text(command_id, "the command's id")
        rows = self.rows(
            self.select_command(command_id),
            f"look up the command {command_id}",
            self.primary_reader,
        )
        return CommandOutcome(rows[0][0], rows[0][1]) if rows else None

    def select_command(self, command_id: str) -> Select[Any]:
        """Return the query for a command's record, unless that has expired."""
        return select(commands.c.position, commands.c.outcome).where(
            commands.c.command_id == command_id,
            commands.c.expires_at > self.rules.to_time(datetime.now(UTC)),
        )


def _have(rows: Sequence[Any], known: Sequence[KnownEvent]) -> bool:
    """Return whether the rows of a history have all events that are known."""
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
