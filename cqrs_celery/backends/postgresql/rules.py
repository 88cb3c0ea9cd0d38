"""What PostgreSQL does its own way: errors by SQLSTATE, jsonb, and the lock of all that append."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    CompoundSelect,
    Connection,
    Delete,
    Dialect,
    Select,
    Text,
    cast,
    extract,
    func,
    select,
    text,
)

from ..sql.failures import Failure
from ..sql.rules import SqlRules
from .prepared import code_of
from .rights import missing_rights

#: Names the advisory lock of appends, together with the number of the events' table.
LOCK_CLASS: Final = 1_668_444_019

LOCK: Final = text(
    f"SELECT pg_advisory_xact_lock_shared(({LOCK_CLASS}::bigint << 32)"
    " | 'cqrs_events'::regclass::oid::bigint)"
)

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

_encode = msgspec.json.Encoder().encode


class PostgresqlRules(SqlRules):
    """The rules of PostgreSQL."""

    # A single statement needs no BEGIN and no ROLLBACK around it.
    reads_in_autocommit = True

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

    def serves(self, connection: Any, dialect: Dialect) -> bool:
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
        except dialect.loaded_dbapi.Error:
            return False
        return bool(is_read_only == "off")

    def as_text(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return a column of jsonb as a text."""
        return cast(column, Text)

    def to_time(self, time: datetime) -> datetime:
        """Return a time as the driver takes it: with its zone."""
        return time

    def as_utc(self, time: Any) -> datetime:
        """Return a time of what a row has, which may be a text."""
        read = datetime.fromisoformat(time) if type(time) is str else time
        return read if read.tzinfo is UTC else read.astimezone(UTC)

    def lock_append(self, connection: Connection) -> None:
        """Take, shared, the lock of all that append, before a position is taken."""
        connection.execute(LOCK)

    def delete_unlocked(self, first: Select[Any], is_expired: ColumnElement[bool]) -> Delete:
        """Return a statement that deletes commands, and passes over those that are locked."""
        # With a name of its own, what is selected is selected once.
        found = first.with_for_update(skip_locked=True).cte("expired")
        return super().delete_unlocked(select(found), is_expired)

    def now_ms(self) -> ColumnElement[int]:
        """Return the time by the server's clock, in milliseconds since 1970."""
        return cast(extract("epoch", func.clock_timestamp()) * 1000, BigInteger)

    def to_json(self, data: bytes) -> str:
        """Return an event's data as jsonb takes them."""
        return to_jsonb(data).decode()

    def missing_rights(self, rights_on: Mapping[str, Sequence[str]]) -> CompoundSelect[Any]:
        """Return the statement that reads the rights that the connection's role lacks."""
        return missing_rights(rights_on)


def to_jsonb(data: bytes) -> bytes:
    r"""Return an event's data as jsonb takes them.

    It has no \u0000 and no half of a surrogate pair: such data become a JSON string that holds
    their JSON.
    """
    if b"\\u" in data and (b"\\u0000" in data or b"\\ud" in data or b"\\uD" in data):
        return _encode(data.decode())
    return data


def _is_of_the_connection(error: BaseException) -> bool:
    """Return whether a driver's error without a code comes from a connection that broke.

    psycopg2 has a bare DatabaseError for some; both drivers derive from the others.
    """
    names = {base.__name__ for base in type(error).__mro__}
    return bool(names & {"OperationalError", "InterfaceError"}) or (
        type(error).__name__ == "DatabaseError"
    )
