"""Run statements that the server has parsed already, on connections that are kept.

What is run often is a round trip and little else: no BEGIN and no COMMIT around it, nothing parsed
twice, and no pool's bookkeeping, which costs as much as a small statement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine
from sqlalchemy.pool import NullPool

#: A parameter in the text of a statement.
_PARAMETER: Final = re.compile(r"\$(\d+)")


class Statement(NamedTuple):
    """Be a statement: its name, its parameters' types, and its text with $1, $2, … once each."""

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
    """Be connections of an engine's pool that commit each statement, kept from one to the next.

    Their pool counts them as taken. Where it keeps none itself, none are kept here.

    Args:
        engine: gives them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._idle: list[Any] = []
        self._is_keeping = not isinstance(engine.pool, NullPool)

    def run(self, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        """Run a statement; returns its rows.

        It is prepared where it is run for the first time on a connection. A connection on which
        something failed is not used again, unless the failure is an answer of our own functions.

        Raises:
            Exception: the driver's.
        """
        pooled = self._take()
        try:
            rows = self._run_on(pooled, statement, arguments)
        except BaseException as error:
            if code_of(error).startswith("CQ"):
                self._give_back(pooled)
            else:
                pooled.invalidate(error)
            raise
        self._give_back(pooled)
        return rows

    def _run_on(self, pooled: Any, statement: Statement, arguments: Sequence[Any]) -> list[Any]:
        prepared: dict[Any, Any] = pooled.info
        with pooled.dbapi_connection.cursor() as cursor:
            text = prepared.get(statement.name)
            if text is None:
                text = prepared[statement.name] = _prepare(cursor, statement)
            cursor.execute(text, arguments)
            return cursor.fetchall()  # type: ignore[no-any-return]

    def _take(self) -> Any:
        try:
            return self._idle.pop()
        except IndexError:
            pooled: Any = self._engine.raw_connection()
            pooled.dbapi_connection.autocommit = True
            return pooled

    def _give_back(self, pooled: Any) -> None:
        if self._is_keeping:
            self._idle.append(pooled)
        else:
            pooled.close()

    def close(self) -> None:
        """Give all connections back to the pool."""
        while self._idle:
            with suppress(IndexError):
                pooled = self._idle.pop()
                try:
                    pooled.dbapi_connection.autocommit = False
                except self._engine.dialect.loaded_dbapi.Error:
                    pooled.invalidate()  # the server is gone
                else:
                    pooled.close()

    def forget(self) -> None:
        """Leave the connections to the parent process, whose fork this one is."""
        for pooled in self._idle:
            pooled.detach()
        self._idle.clear()


def code_of(error: BaseException) -> str:
    """Return a driver's error's SQLSTATE; empty if it has none, as when a connection broke."""
    return getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""


@cache
def _text(statement: Statement) -> str:
    """Return a statement's text with the driver's own placeholders."""
    types = statement.types
    return _PARAMETER.sub(lambda found: f"%s::{types[int(found[1]) - 1]}", statement.text)


def _prepare(cursor: Any, statement: Statement) -> str:
    """Return the text that runs a statement, which the server has parsed by then."""
    if not hasattr(cursor, "mogrify"):
        return _text(statement)  # psycopg prepares by itself what comes again
    # psycopg2 sends texts: the server knows what it has parsed by a name.
    name, types, text = statement
    cursor.execute(f"PREPARE {name} ({', '.join(types)}) AS {text}")
    return f"EXECUTE {name}({', '.join(f'%s::{one}' for one in types)})"
