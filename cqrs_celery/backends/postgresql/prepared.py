"""Run statements that the server has parsed already, on connections that are kept.

What is run often is a round trip and little else: no BEGIN and no COMMIT around it, nothing parsed
twice, and no pool's bookkeeping, which costs as much as a small statement.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.pool import QueuePool

from .answering import using

#: A parameter in the text of a statement.
_PARAMETER: Final = re.compile(r"\$(\d+)")

#: There is no such prepared statement; there is one already; it has become another one.
_NOT_PREPARED: Final = ("26000", "42P05", "0A000")


class Statement(NamedTuple):
    """A statement: its name, its parameters' types, and its text with $1, $2, … once."""

    name: str
    types: tuple[str, ...]
    text: str


def function(name: str, *types: str) -> Statement:
    """Return the statement that calls a function."""
    parameters = ", ".join(f"${number}" for number in range(1, len(types) + 1))
    return Statement(name, types, f"SELECT {name}({parameters})")


def run_once(connection: Any, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
    """Run a statement in whatever transaction a connection of the driver's has; return the rows."""
    with connection.cursor() as cursor:
        cursor.execute(_text(statement), arguments)
        return cursor.fetchall()  # type: ignore[no-any-return]


class KeptConnections:
    """Connections of an engine's pool that commit each statement, kept from one to the next.

    Their pool counts them as taken, so at most half of what it may hold is kept here. Safe for
    threads.

    Args:
        engine: gives them.
        is_keeping: False to give each back at once: to the pool of an application of which nobody
            knows here what it expects of its connections.
    """

    def __init__(self, engine: Engine, *, is_keeping: bool = True) -> None:
        self._engine = engine
        self._idle: list[Any] = []
        pool = engine.pool
        self._most = pool.size() // 2 if is_keeping and isinstance(pool, QueuePool) else 0
        self._epoch = 0
        # Those of the parent process. They are never closed here, and so never collected.
        self._left: list[Any] = []

    def run(self, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        """Run a statement; returns its rows.

        It is prepared where it is run for the first time on a connection. A connection on which
        something failed is not used again, unless the failure is an answer of our own functions.

        Raises:
            Exception: the driver's.
        """
        epoch = self._epoch
        pooled = self._take()
        try:
            rows = self._run_on(pooled, statement, arguments)
        except BaseException as error:
            if code_of(error).startswith("CQ"):
                self._give_back(pooled, epoch)
            else:
                pooled.invalidate(error)
            raise
        self._give_back(pooled, epoch)
        return rows

    def _run_on(self, pooled: Any, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        prepared: dict[Any, Any] = pooled.info
        with _cursor(pooled.dbapi_connection) as cursor:
            try:
                text = prepared.get(statement.name)
                if text is None:
                    text = prepared[statement.name] = _prepare(cursor, statement)
                cursor.execute(text, arguments)
            except Exception as error:
                if code_of(error) not in _NOT_PREPARED:
                    raise
                # Nothing was done. A pooler in between may give each statement to another server
                # process (PgBouncer does), or somebody has discarded what was prepared.
                text = prepared[statement.name] = _text(statement)
                cursor.execute(text, arguments)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def _take(self) -> Any:
        pooled: Any
        try:
            pooled = self._idle.pop()
        except IndexError:
            pooled = self._engine.raw_connection()
            pooled.dbapi_connection.autocommit = True
        else:
            using(pooled.dbapi_connection)
        return pooled

    def _give_back(self, pooled: Any, epoch: int) -> None:
        if epoch != self._epoch:
            # It is of before a `close`, and may have been lost with those that were closed. Its
            # pool may be gone, too: given back to that, it would stay open.
            pooled.invalidate()
        elif len(self._idle) < self._most:
            self._idle.append(pooled)
        else:
            self._return(pooled)

    def _return(self, pooled: Any) -> None:
        try:
            pooled.dbapi_connection.autocommit = False
        except self._engine.dialect.loaded_dbapi.Error:
            pooled.invalidate()  # the server is gone
        else:
            pooled.close()

    def close(self) -> None:
        """Close all connections; those in use follow when they are free.

        Nothing is said to the server, which may not answer.
        """
        self._epoch += 1
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().invalidate()

    def forget(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        self._epoch += 1
        self._left, self._idle = [*self._left, *self._idle], []


def code_of(error: BaseException) -> str:
    """Return a driver's error's SQLSTATE; empty if it has none, as when a connection broke."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""


@cache
def hash_of(text: str) -> str:
    """Return some digits that tell a text from others."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@cache
def _text(statement: Statement) -> str:
    """Return a statement's text with the driver's own placeholders."""
    types = statement.types
    return _PARAMETER.sub(lambda found: f"%s::{types[int(found[1]) - 1]}", statement.text)


def _cursor(connection: Any) -> Any:
    """Return a cursor that puts values into a statement's text, as psycopg2's do.

    psycopg 3 prepares by itself, under names that it counts: behind a pooler that changes servers
    between statements, such a name may be another client's, of another statement.
    """
    cursor = connection.cursor()
    if hasattr(cursor, "mogrify"):
        return cursor
    from psycopg import ClientCursor

    return ClientCursor(connection)


def _prepare(cursor: Any, statement: Statement) -> str:
    """Return the text that runs a statement, which the server has parsed by then."""
    types, text = statement.types, statement.text
    # The server knows what it has parsed by a name. Behind a pooler, another release of this
    # library may have prepared its own.
    name = f"{statement.name}_{hash_of(text)}"
    cursor.execute(f"PREPARE {name} ({', '.join(types)}) AS {text}")
    return f"EXECUTE {name}({', '.join(f'%s::{one}' for one in types)})"
