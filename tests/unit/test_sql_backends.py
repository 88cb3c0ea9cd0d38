"""A SQL engine is one folder of `backends`: whoever adds one changes nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import cast

import pytest

from cqrs_celery.backends.sql.backends import SqlBackend, backend_named, backend_of, sql_backends
from cqrs_celery.backends.sql.engine import parse_url
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.errors import InvalidSetting
from tests.nodes import REPOSITORY

#: An engine that is SQLite under another name, without what SQLite has of its own in the package:
#: its store is the one that all engines share.
POND = {
    "__init__.py": "",
    "sql_backend.py": """
        from ..sql.backends import Driver, SqlBackend

        class PondBackend(SqlBackend):
            name = "pond"
            aliases = ("puddle",)
            example = "pond:///file"
            drivers = (Driver("pysqlite", "sqlite3", "a Python that was built with SQLite"),)

            def store(self):
                from .event_store import PondEventStore
                return PondEventStore

            def migrations(self):
                from .migrations import PondMigrations
                return PondMigrations()

            def column_types(self):
                from .columns import COLUMN_TYPES
                return COLUMN_TYPES

            def engine_options(self, url):
                from . import dialect
                return {"connect_args": {"timeout": 7}}

        BACKEND = PondBackend()
    """,
    "dialect.py": """
        from sqlalchemy.dialects import registry
        from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

        class PondDialect(SQLiteDialect_pysqlite):
            name = "pond"
            supports_statement_cache = True

        for name in ("pond", "pond.pysqlite"):
            registry.register(name, __name__, "PondDialect")

        try:
            from alembic.ddl.sqlite import SQLiteImpl
        except ImportError:
            pass
        else:
            class PondImpl(SQLiteImpl):
                __dialect__ = "pond"
    """,
    "columns.py": """
        from sqlalchemy import Integer
        from ..sql.column_types import ColumnTypes

        COLUMN_TYPES = ColumnTypes(number=Integer)
    """,
    "migrations.py": """
        from ..sql.migrations.variants import MigrationVariants

        class PondMigrations(MigrationVariants):
            new_id = "'pond-1'"

            def finish_event_store(self, op):
                op.execute("CREATE TABLE made_by_pond (id TEXT)")
    """,
    "rules.py": """
        import sqlite3
        from sqlalchemy import BigInteger, cast, func
        from ..sql.failures import Failure
        from ..sql.rules import SqlRules

        class PondRules(SqlRules):
            def failure(self, error):
                is_taken = isinstance(error, sqlite3.IntegrityError)
                return Failure.TAKEN if is_taken else Failure.AWAY

            def now_ms(self):
                return cast((func.julianday("now") - 2440587.5) * 86400000, BigInteger)
    """,
    "event_store.py": """
        from ..sql.event_store import SqlEventStore
        from .rules import PondRules

        class PondEventStore(SqlEventStore):
            rules = PondRules()
    """,
}

#: Adds a folder of engines, and does with the new one what an application does.
PROGRAM = """
import sys
from datetime import UTC, datetime

import cqrs_celery.backends
cqrs_celery.backends.__path__.append(sys.argv[1])

from celery import Celery
from cqrs_celery import open_event_store
from cqrs_celery.errors import InvalidSetting
from cqrs_celery.app.settings import read_settings
from cqrs_celery.backends.sql.schema import check_schema, create_schema, schema_sql
from cqrs_celery.store.events import CommandRecord, StreamAppend
from cqrs_celery.store.stream import NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import event

url = f"puddle:///{sys.argv[2]}"
assert read_settings(Celery("shop", changes={"cqrs_event_store": url})).event_store == url
try:
    read_settings(Celery("shop", changes={"cqrs_event_store": "mysql://h/d"}))
except InvalidSetting as error:
    assert "'pond:///file'" in str(error), error
else:
    raise AssertionError

store = open_event_store(url)
assert type(store).__name__ == "PondEventStore", store
assert store.engine.url.drivername == "pond+pysqlite"
assert create_schema(store) == check_schema(store)
assert store.outbox.store_id == "pond-1"
with store.engine.connect() as connection:
    connection.exec_driver_sql("SELECT id FROM made_by_pond")
stream = StreamName("shop", "Item", "7")
appends = [StreamAppend(stream, NO_STREAM, (event(), event()))]
committed = store.append(appends, command=CommandRecord("c-1", ttl_s=60, outcome="null"))
assert committed.versions == (2,), committed
assert [one.version for one in store.read_stream(stream)] == [1, 2]
assert [one.global_position for one in store.read_all()] == [1, 2]
assert store.find_command("c-1").position == 2
assert store.leadership("shop", broker="redis://h").claim("b-1")
assert "INTEGER NOT NULL" in schema_sql("pond")
assert open_event_store(engine=store.engine).engine is store.engine
print("opened", store)
"""


def test_an_engine_is_added_by_one_folder(tmp_path: Path) -> None:
    # given a folder as `cqrs_celery/backends`, with one engine that the package does not know
    folder = tmp_path / "backends"
    for name, source in POND.items():
        file = folder / "pond" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source))
    # when an application names it in its settings, makes the tables, writes and reads
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "events.db")],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    # then it is as with any other engine
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("opened <PondEventStore pond:///")


def test_the_engines_are_those_that_have_a_folder() -> None:
    names = [(one.name, *one.aliases) for one in sql_backends()]
    assert names == [("postgresql", "postgres"), ("sqlite",), ("mssql", "sqlserver")]


def test_no_word_begins_the_urls_of_two_engines() -> None:
    words = [word for one in sql_backends() for word in (one.name, *one.aliases)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("backend", sql_backends(), ids=lambda one: str(one.name))
def test_each_engine_declares_what_opening_needs(backend: SqlBackend) -> None:
    assert backend_named(backend.name) is backend
    assert backend_of(backend.name) is backend
    assert backend.example.startswith(backend.name)
    assert backend.drivers
    assert backend.migrations().new_id
    assert issubclass(cast(type, backend.store()), SqlEventStore)


def test_sqlalchemy_is_not_imported_for_the_names_of_engines() -> None:
    # given an application without the extra [sql], whose settings are read
    program = (
        "import sys; from cqrs_celery.backends.sql.backends import sql_backends;"
        " assert len(sql_backends()) == 3;"
        " print(sorted(n for n in sys.modules if n.partition('.')[0] in"
        " ('sqlalchemy', 'alembic', 'psycopg2', 'psycopg', 'pyodbc', 'sqlite3')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_opening_in_one_engine_imports_no_other() -> None:
    program = (
        "import sys; from cqrs_celery import open_event_store;"
        " open_event_store('sqlite:///events.db');"
        " print([n for n in sys.modules if n.endswith(('postgresql.event_store',"
        " 'sqlserver.event_store')) or n.startswith('psycopg')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"


def test_an_engine_that_no_folder_is_for_is_refused() -> None:
    with pytest.raises(InvalidSetting, match=r"for oracle; .* in postgresql, sqlite, mssql"):
        backend_of("oracle")
    # an alias begins URLs; SQLAlchemy never calls an engine by it
    with pytest.raises(InvalidSetting, match="for postgres;"):
        backend_of("postgres")


def test_a_url_of_no_engine_names_those_that_there_are() -> None:
    with pytest.raises(InvalidSetting) as refused:
        parse_url("mysql://bob:s3cret@h/d", setting="the URL")
    assert refused.value.accepted == ("postgresql://…, sqlite:///file, mssql+pyodbc://…, memory://")
