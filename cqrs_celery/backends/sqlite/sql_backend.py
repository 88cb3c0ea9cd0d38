"""Declare SQLite: its names, its driver, and where the rest of it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ...errors import InvalidSetting
from ..sql.backends import Driver, SqlBackend

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import URL

    from ...store.ports import EventStore
    from ..sql.column_types import ColumnTypes
    from ..sql.migrations.variants import MigrationVariants


class SqliteBackend(SqlBackend):
    """SQLite."""

    name = "sqlite"
    example = "sqlite:///file"
    drivers = (Driver("pysqlite", "sqlite3", "a Python that was built with SQLite"),)

    def store(self) -> Callable[..., EventStore]:
        """Return the class of its stores."""
        from .event_store import SqliteEventStore

        return SqliteEventStore

    def migrations(self) -> MigrationVariants:
        """Return what it does its own way when the tables are made."""
        from .migrations import SqliteMigrations

        return SqliteMigrations()

    def column_types(self) -> ColumnTypes:
        """Return its type of numbers."""
        from .columns import COLUMN_TYPES

        return COLUMN_TYPES

    def check_url(self, url: URL) -> None:
        """Check that a URL names a file.

        Raises:
            InvalidSetting: it names a database in memory.
        """
        if url.database in (None, "", ":memory:"):
            raise InvalidSetting(
                "an SQLite event store needs a file, sqlite:///events.db; in this process's memory"
                " alone, it is memory://",
                setting="the URL",
                accepted=self.example,
            )

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Return how long a writer waits for another one, and the connections' class."""
        from .connecting import BUSY_S
        from .forking import ForkSafeConnection

        return {"connect_args": {"timeout": BUSY_S, "factory": ForkSafeConnection}}

    def missing(self, url: URL) -> str | None:
        """Return that there is no such file, which connecting would make."""
        path = url.database or ""
        return None if path.startswith("file:") or Path(path).exists() else "there is no such file"

    def prepare(self, engine: Engine) -> None:
        """Let readers and the writer of a file not wait for each other."""
        from .connecting import prepare_engine

        prepare_engine(engine)


BACKEND: Final = SqliteBackend()
