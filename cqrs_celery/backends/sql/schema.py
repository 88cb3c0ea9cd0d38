"""Make a SQL event store's tables, check them, and print what would make them.

    create_schema(store)        # in a test, or where the application owns its database
    check_schema(store)

Nothing here happens by itself. The tables' version is in the table `cqrs_schema`.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, Connection, MetaData, String, Table, select

from ...errors import MissingDependency
from ...extras import how_to_install
from .access import SqlAccess
from .backends import backend_of
from .failures import schema_missing

#: The table that has the tables' version.
VERSION_TABLE: Final = "cqrs_schema"

# Alembic's environment is one for the whole process.
_alembic_lock = threading.Lock()

_version: Final = Table(VERSION_TABLE, MetaData(), Column("version_num", String(32)))


def create_schema(store: SqlAccess) -> str:
    """Make the tables, or bring them to this version; returns the version.

    What is there already is left alone. Where the engine can, as PostgreSQL, SQL Server and SQLite,
    it is one transaction.

    Raises:
        MissingDependency: Alembic is not installed.
        StoreUnavailable: the server does not answer.
        TransactionConflict: other transactions were in its way again and again.
        StoreError: the database refuses it, for want of a right as a rule.
    """
    command, config = _alembic()

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    # To build an index takes as long as it takes.
    with _alembic_lock, store.limited(None):
        store.transact("create the event store's tables", upgrade)
    return newest_version()


def check_schema(store: SqlAccess) -> str:
    """Check that the tables are there in this version; returns it.

    An SQLite file that is not there is not made.

    Raises:
        SchemaError: they are missing, or of another version.
        StoreUnavailable: the server does not answer.
    """
    # What an engine of the application's opens may be something else than its URL says.
    if store.is_own_engine:
        url = store.engine.url
        missing = backend_of(url.get_backend_name()).missing(url)
        if missing is not None:
            raise schema_missing(store.where, missing)
    rows = store.rows(select(_version.c.version_num), "look for the tables", store.primary_reader)
    found = rows[0][0] if rows else None
    if found != newest_version():
        raise schema_missing(
            store.where, f"found version {found or 'none'}, expected {newest_version()}"
        )
    return str(found)


def schema_sql(dialect: str) -> str:
    """Return the statements that make the tables, for a DBA to run.

    Args:
        dialect: the engine's name in SQLAlchemy, as postgresql.

    Raises:
        MissingDependency: Alembic is not installed.
        InvalidSetting: there is no such engine.
    """
    written = io.StringIO()
    command, config = _alembic(output_buffer=written)
    config.attributes["dialect"] = dialect
    with _alembic_lock:
        command.upgrade(config, "head", sql=True)
    return written.getvalue()


def newest_version() -> str:
    """Return the version of the tables that this package works with."""
    names = sorted(path.stem for path in (_here() / "versions").glob("v*.py"))
    return names[-1].removeprefix("v").partition("_")[0]


def _here() -> Path:
    return Path(__file__).parent / "migrations"


def _alembic(**options: Any) -> tuple[Any, Any]:
    try:
        from alembic import command
        from alembic.config import Config
    except ImportError as error:
        raise MissingDependency(
            "making the event store's tables needs Alembic, which is not installed:"
            f" {how_to_install('sql')}"
        ) from error
    config = Config(**options)
    config.set_main_option("script_location", str(_here()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return command, config
