"""Declare PostgreSQL: its names, its drivers, and where the rest of it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ...extras import how_to_install
from ..sql.backends import Driver, SqlBackend

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from ...store.ports import EventStore
    from ..sql.column_types import ColumnTypes
    from ..sql.migrations.variants import MigrationVariants


class PostgresqlBackend(SqlBackend):
    """PostgreSQL."""

    name = "postgresql"
    aliases = ("postgres",)
    example = "postgresql://…"
    drivers = (
        Driver("psycopg2", "psycopg2", how_to_install("postgresql")),
        Driver("psycopg", "psycopg", "pip install 'psycopg[binary]'"),
    )

    def store(self) -> Callable[..., EventStore]:
        """Return the class of its stores."""
        from .event_store import PostgresqlEventStore

        return PostgresqlEventStore

    def migrations(self) -> MigrationVariants:
        """Return what it does its own way when the tables are made."""
        from .migrations import PostgresqlMigrations

        return PostgresqlMigrations()

    def column_types(self) -> ColumnTypes:
        """Return its type of JSON."""
        from .columns import COLUMN_TYPES

        return COLUMN_TYPES

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Return what notices that the server's host is gone; psycopg 3 prepares nothing."""
        from .driver import connect_options

        return {"connect_args": connect_options(url)}


BACKEND: Final = PostgresqlBackend()
