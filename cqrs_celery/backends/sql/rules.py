"""What differs between SQL engines, as one value for each of them.

An engine's folder has its rules: what its driver's errors mean, how it locks, in which order its
positions come, and how it takes times and JSON. They have no state, so one value serves all stores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, cast

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    Delete,
    Dialect,
    Select,
    Update,
    delete,
)

from ...store.stream import StreamName
from .failures import Failure
from .tables import commands, events

#: Rows in one INSERT: SQL Server takes 2,100 values a statement.
INSERT_ROWS: Final = 200


class SqlRules:
    """The rules of one SQL engine. What is here holds for most; an engine replaces the others.

    Attributes:
        reads_in_autocommit: single statements that read need no transaction around them.
        events_per_insert: events in one INSERT, at most, so that their positions increase in the
            order of the rows.
    """

    reads_in_autocommit: bool = False
    events_per_insert: int = INSERT_ROWS

    # ------------------------------------------------------------ errors

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means."""
        raise NotImplementedError

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL is to blame for the server's being away, as far as can be told."""
        return False

    def is_away(self, error: BaseException) -> bool:
        """Return whether a statement of the application's own failed since the server is away."""
        return self.failure(error) is Failure.AWAY

    def is_deadlock(self, error: BaseException) -> bool:
        """Return whether the database ended the transaction in a statement of the application's.

        That is, for the sake of another transaction: by a deadlock or a serialization failure.
        """
        return self.failure(error) is Failure.BEATEN

    def serves(self, connection: Any, dialect: Dialect) -> bool:
        """Return whether the server serves a connection of the driver's, and lets it write.

        Args:
            connection: the driver's.
            dialect: SQLAlchemy's, for the driver.
        """
        try:
            dialect.do_ping(connection)
        except dialect.loaded_dbapi.Error:
            return False
        return True

    # ------------------------------------------------------------ values

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the database's clock, in milliseconds since 1970."""
        raise NotImplementedError

    def to_time(self, time: datetime) -> datetime:
        """Return a time as the driver takes it."""
        return time.astimezone(UTC).replace(tzinfo=None)

    def as_utc(self, time: Any) -> datetime:
        """Return a time of what a row has."""
        return cast(datetime, time.replace(tzinfo=UTC))

    def as_text(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a column of JSON as a text."""
        return column

    def to_json(self, data: bytes) -> str:
        """Return an event's data as its column takes them."""
        return data.decode()

    def key(self, stream: StreamName) -> str:
        """Return what a stream is found by."""
        return stream.key

    # ------------------------------------------------------------ the order of positions

    def position(self) -> ColumnElement[int]:
        """Return the position of an event."""
        return events.c.global_position

    def order(self) -> ColumnElement[Any]:
        """Return what events are ordered by, which has an index."""
        return self.position()

    def after(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands behind a position."""
        return events.c.global_position > position

    def up_to(self, position: int) -> ColumnElement[bool]:
        """Return the condition that an event stands at a position or in front of it."""
        return events.c.global_position <= position

    # ------------------------------------------------------------ locks and changes

    def on_begin(self, connection: Connection) -> None:
        """Do what a transaction needs that begins with statements of the application's own."""

    def lock_append(self, connection: Connection) -> None:
        """Take what an append needs before it reads."""

    def locked(self, statement: Select[Any]) -> Select[Any]:
        """Return a statement that locks the streams that it reads until the transaction's end."""
        return statement.with_for_update()

    def delete_unlocked(self, first: Select[Any], is_expired: ColumnElement[bool]) -> Delete:
        """Return a statement that deletes commands, and passes over those that are locked.

        Args:
            first: selects the ids of those to delete.
            is_expired: holds for them.
        """
        return delete(commands).where(commands.c.command_id.in_(first), is_expired)

    def changed(self, connection: Connection, statement: Update | Delete) -> int:
        """Run a statement that changes rows; returns how many it has changed."""
        return connection.execute(statement).rowcount

    # ------------------------------------------------------------ rights

    def missing_rights(self, rights_on: Mapping[str, Sequence[str]]) -> CompoundSelect[Any] | None:
        """Return the statement that reads the rights that the connection's role lacks.

        Args:
            rights_on: the rights that are needed, by table.

        Returns:
            What selects a role, a thing and a right in each row; None if the engine is not asked.
        """
        return None
