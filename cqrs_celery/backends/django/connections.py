"""Make SQLAlchemy engines from what Django knows of a database.

One opens connections of its own, as Django's settings say at that moment. The other lends the
thread's connection of Django's, with its transaction: SQLAlchemy begins, commits and closes nothing
there.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.connection import ConnectionDoesNotExist
from sqlalchemy import DateTime, Dialect, Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from ...errors import InvalidSetting
from ..sql.engine import POOL_SIZE, POOL_TIMEOUT_S
from ..sqlite.connecting import BUSY_S, prepare_engine
from ..sqlite.forking import ForkSafeConnection

#: The databases that a store can be in, as Django calls them.
VENDORS: Final = ("postgresql", "sqlite")


def vendor_of(alias: str) -> str:
    """Return what kind of database an alias is for.

    Raises:
        InvalidSetting: Django is not set up, has no such database, or it is of another kind.
    """
    accepted = "the alias of a PostgreSQL or SQLite database in Django's DATABASES"
    try:
        vendor = str(connections[alias].vendor)
    except (ImproperlyConfigured, ConnectionDoesNotExist) as error:
        raise InvalidSetting(
            f"the event store is to be in Django's database {alias!r}, which can't be found"
            f" ({error}); accepted: {accepted}. Call django.setup() before.",
            setting="the URL",
            accepted=accepted,
        ) from error
    if vendor not in VENDORS:
        raise InvalidSetting(
            f"Django's database {alias!r} is of {vendor}; accepted: {accepted}",
            setting="the URL",
            accepted=accepted,
        )
    return vendor


def own_engine(alias: str, vendor: str) -> Engine:
    """Return an engine that opens connections as Django would, at its first use.

    What Django knows of the database is asked for at each connection: a test runner changes it.
    """
    options: dict[str, Any] = {"hide_parameters": True}
    options.update(pool_size=POOL_SIZE, max_overflow=0, pool_timeout=POOL_TIMEOUT_S)
    if vendor == "postgresql":
        drivername = f"postgresql+{_driver()}"
        return create_engine(URL.create(drivername), creator=lambda: _open(alias), **options)
    engine = create_engine(
        URL.create("sqlite+pysqlite", database=alias), creator=lambda: _open_file(alias), **options
    )
    prepare_engine(engine)
    return engine


def lending_engine(alias: str, vendor: str) -> Engine:
    """Return an engine whose connections are all the thread's own one of Django's."""
    name = f"django_{_driver()}" if vendor == "postgresql" else "django"
    return create_engine(
        URL.create(f"{vendor}+{name}"),
        creator=lambda: _lend(alias),
        poolclass=NullPool,
        pool_reset_on_return=None,
        hide_parameters=True,
    )


def is_in_transaction(alias: str) -> bool:
    """Return whether a transaction of Django's is open in this thread, or its user's to commit."""
    wrapper = connections[alias]
    # Before the first connection, get_autocommit would open one.
    return bool(
        wrapper.in_atomic_block or (wrapper.connection is not None and not wrapper.autocommit)
    )


def file_of(alias: str) -> str:
    """Return the path of an SQLite database."""
    return str(connections[alias].settings_dict["NAME"])


def _driver() -> str:
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    return "psycopg" if is_psycopg3 else "psycopg2"


def _open(alias: str) -> Any:
    wrapper = connections[alias].copy()
    # A connection from a pool of Django's would have to go back there.
    wrapper.settings_dict["OPTIONS"].pop("pool", None)
    return wrapper.get_new_connection(wrapper.get_connection_params())


def _open_file(alias: str) -> sqlite3.Connection:
    name = file_of(alias)
    options = connections[alias].settings_dict["OPTIONS"]
    return sqlite3.connect(
        name,
        timeout=options.get("timeout", BUSY_S),
        check_same_thread=False,
        factory=ForkSafeConnection,
        uri=name.startswith("file:"),
    )


def _lend(alias: str) -> Any:
    wrapper = connections[alias]
    wrapper.ensure_connection()
    return wrapper.connection


class _Lent:
    """A dialect that leaves a connection as it is: it is lent, and so is its transaction."""

    def on_connect(self) -> None:
        """Set nothing up."""

    def do_begin(self, dbapi_connection: Any) -> None:
        """Begin nothing."""

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit nothing."""

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Roll nothing back."""

    def do_close(self, dbapi_connection: Any) -> None:
        """Close nothing."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        """Close nothing."""


class _ReadTime(DateTime):
    """A time that Django has read already, and that it writes."""

    def bind_processor(self, dialect: Dialect) -> None:
        """Leave it to Django."""

    def result_processor(self, dialect: Dialect, coltype: object) -> None:
        """Leave it to Django."""


class LentPsycopg2(_Lent, PGDialect_psycopg2):
    """PostgreSQL's dialect for a lent connection of psycopg2."""

    supports_statement_cache = True


class LentPsycopg(_Lent, PGDialect_psycopg):
    """PostgreSQL's dialect for a lent connection of psycopg 3."""

    supports_statement_cache = True


class LentSqlite(_Lent, SQLiteDialect_pysqlite):  # type: ignore[misc]
    """SQLite's dialect for a lent connection."""

    supports_statement_cache = True
    colspecs = {**SQLiteDialect_pysqlite.colspecs, DateTime: _ReadTime}  # noqa: RUF012


registry.register("postgresql.django_psycopg2", __name__, "LentPsycopg2")
registry.register("postgresql.django_psycopg", __name__, "LentPsycopg")
registry.register("sqlite.django", __name__, "LentSqlite")
