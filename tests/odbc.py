"""A driver in place of pyodbc: it answers by a script and remembers what it was asked.

    driver = Driver([("MAX", Rows([(7,)])), ("UPDATE", Count(-1))])
    store = SqlServerEventStore(driver.engine())

No server is there, so a test sees what SQLAlchemy sends to SQL Server, and how the store takes what
SQL Server would answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, create_engine


class Error(Exception):
    """Stand for pyodbc's."""


class ProgrammingError(Error):
    """Stand for pyodbc's."""


@dataclass(frozen=True)
class Rows:
    """What a statement returns."""

    rows: Sequence[Sequence[Any]] = ()


@dataclass(frozen=True)
class Count:
    """How many rows a statement changed; -1 where NOCOUNT is on."""

    rows: int = 1


#: The beginning of an answer is looked for in a statement: rows, a count, or the driver's error.
Answer = Rows | Count | Error


class Driver:
    """A module such as pyodbc.

    Args:
        script: texts of which the first one that is in a statement chooses its answer. An answer is
            given again and again; a list gives one after the other, and its last one for good.

    Attributes:
        asked: the statements and their parameters, in order.
        types: the parameters' types that each statement was given; None where there were none.
        ends: "commit" and "rollback", in order.
    """

    paramstyle = "qmark"
    version = "5.5.0"
    threadsafety = 1
    Error = Error
    ProgrammingError = ProgrammingError
    STRING, BINARY, NUMBER, DATETIME, ROWID = str, bytearray, Decimal, datetime, int
    SQL_VARCHAR = 12
    SQL_WVARCHAR = -9
    SQL_DECIMAL = 3
    SQL_TYPE_TIMESTAMP = 93

    def __init__(self, script: Iterable[tuple[str, Answer | list[Answer]]] = ()) -> None:
        self.script = list(script)
        self.asked: list[tuple[str, Any]] = []
        self.types: list[Any] = []
        self.ends: list[str] = []
        self.Cursor = Cursor

    @staticmethod
    def Binary(value: bytes) -> bytes:  # noqa: N802  the name is DBAPI's
        return value

    def connect(self, *_: Any, **__: Any) -> Connection:
        return Connection(self)

    def engine(self) -> Engine:
        """Return an engine that asks this driver, and asks nothing about the server."""
        engine = create_engine("mssql+pyodbc://h/d?driver=x", module=self, _initialize=False)
        engine.dialect.default_isolation_level = "READ COMMITTED"
        return engine

    def answer(self, statement: str) -> Rows | Count:
        for text, answers in self.script:
            if text not in statement:
                continue
            if isinstance(answers, list):
                answer = answers.pop(0) if len(answers) > 1 else answers[0]
            else:
                answer = answers
            if isinstance(answer, Error):
                raise answer
            return answer
        return Rows() if "SELECT" in statement else Count()

    @property
    def statements(self) -> list[str]:
        return [statement for statement, _ in self.asked]


class Connection:
    """One connection of it."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.autocommit = False
        self.closed = False

    def cursor(self) -> Cursor:
        return Cursor(self.driver)

    def add_output_converter(self, *_: Any) -> None:
        pass

    def commit(self) -> None:
        self.driver.ends.append("commit")

    def rollback(self) -> None:
        self.driver.ends.append("rollback")

    def close(self) -> None:
        self.closed = True


class Cursor:
    """One cursor of it."""

    arraysize = 1

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._types: Any = None
        self._rows: list[Sequence[Any]] = []
        self.rowcount = -1
        self.description: Any = None

    def setinputsizes(self, types: Any) -> None:
        self._types = types

    def execute(self, statement: str, parameters: Any = ()) -> Cursor:
        # A look at whether the connection is served is no part of what is done on it.
        if statement == "SELECT 1":
            return self
        self._driver.asked.append((statement, tuple(parameters)))
        self._driver.types.append(self._types)
        answer = self._driver.answer(statement)
        if isinstance(answer, Count):
            self.rowcount = answer.rows
            return self
        self._rows = list(answer.rows)
        width = len(self._rows[0]) if self._rows else 1
        self.description = [(f"c{n}", str, None, None, None, None, True) for n in range(width)]
        return self

    def executemany(self, statement: str, rows: Any) -> None:
        for row in rows:
            self.execute(statement, row)
        self.description = None

    def fetchone(self) -> Any:
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        taken, self._rows = self._rows[: size or 1], self._rows[size or 1 :]
        return taken

    def fetchall(self) -> list[Any]:
        taken, self._rows = self._rows, []
        return taken

    def nextset(self) -> bool:
        return False

    def close(self) -> None:
        pass
