"""Declare SQL Server: its names, its driver, and where the rest of it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ...extras import how_to_install
from ..sql.backends import Driver, SqlBackend

if TYPE_CHECKING:
    from ...store.ports import EventStore
    from ..sql.column_types import ColumnTypes
    from ..sql.migrations.variants import MigrationVariants


class SqlServerBackend(SqlBackend):
    """SQL Server."""

    name = "mssql"
    aliases = ("sqlserver",)
    example = "mssql+pyodbc://…"
    drivers = (
        Driver(
            "pyodbc",
            "pyodbc",
            f"{how_to_install('sqlserver', 'mssql-python')}; the second of them brings Microsoft's"
            " ODBC driver as a file. Besides, the system's libodbc (on Debian, as root: apt-get"
            " install unixodbc)",
        ),
    )

    def store(self) -> Callable[..., EventStore]:
        """Return the class of its stores."""
        from .event_store import SqlServerEventStore

        return SqlServerEventStore

    def migrations(self) -> MigrationVariants:
        """Return what it does its own way when the tables are made."""
        from .migrations import SqlServerMigrations

        return SqlServerMigrations()

    def column_types(self) -> ColumnTypes:
        """Return its types of texts and times."""
        from .columns import COLUMN_TYPES

        return COLUMN_TYPES

    def driver_refusal(self, driver: str) -> str | None:
        """Return why mssql-python can't be used; None for other drivers."""
        if driver == "mssqlpython":
            return (
                "its driver is mssql-python, whose errors carry no number, so that a repeated"
                " append, a deadlock and a server that is away can't be told from other errors; use"
                " mssql+pyodbc, whose option `driver` can name the ODBC driver that mssql-python"
                " has brought"
            )
        return None


BACKEND: Final = SqlServerBackend()
