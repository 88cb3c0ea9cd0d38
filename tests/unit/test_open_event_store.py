"""A URL names a store, gets the driver that is installed, and never shows its password."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine

from cqrs_celery import open_event_store
from cqrs_celery.app.settings import read_settings
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.postgresql.event_store import PostgresqlEventStore
from cqrs_celery.backends.sql.engine import parse_url, where
from cqrs_celery.backends.sql.schema import check_schema
from cqrs_celery.backends.sqlite.event_store import SqliteEventStore
from cqrs_celery.errors import InvalidSetting, MissingDependency, SchemaError


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: object() if name in modules else None
    )


def test_each_engine_has_its_store(tmp_path: Path) -> None:
    assert isinstance(open_event_store("memory://"), MemoryEventStore)
    assert isinstance(open_event_store("postgresql://localhost/shop"), PostgresqlEventStore)
    assert isinstance(open_event_store(f"sqlite:///{tmp_path}/events.db"), SqliteEventStore)


def test_an_engine_of_the_application_s_own_is_used_as_it_is(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/events.db")
    store = open_event_store(engine=engine)
    assert isinstance(store, SqliteEventStore)
    assert store.engine is engine


@pytest.mark.parametrize(
    ("given", "modules", "completed"),
    [
        ("postgresql://h/d", ("psycopg2", "psycopg"), "postgresql+psycopg2"),
        ("postgresql://h/d", ("psycopg",), "postgresql+psycopg"),
        ("postgres://h/d", ("psycopg2",), "postgresql+psycopg2"),
        ("postgresql+psycopg://h/d", ("psycopg2", "psycopg"), "postgresql+psycopg"),
        ("mssql://h/d", ("pyodbc",), "mssql+pyodbc"),
        ("sqlserver://h/d", ("mssql_python", "pyodbc"), "mssql+pyodbc"),
        ("sqlite:///events.db", ("sqlite3",), "sqlite+pysqlite"),
    ],
)
def test_a_url_gets_the_driver_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, given: str, modules: tuple[str, ...], completed: str
) -> None:
    installed(monkeypatch, *modules)
    assert parse_url(given, setting="the URL").drivername == completed


@pytest.mark.parametrize(
    ("url", "install"),
    [
        ("postgresql://h/d", "pip install '.[postgresql]', in a checkout of cqrs-celery"),
        ("mssql+pyodbc://h/d", "pip install '.[sqlserver]' mssql-python, in a checkout"),
        ("mssql+pyodbc://h/d", "unixodbc"),
        ("postgresql+psycopg://h/d", "psycopg[binary]"),
    ],
)
def test_a_missing_driver_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, url: str, install: str
) -> None:
    installed(monkeypatch)
    with pytest.raises(MissingDependency) as missing:
        parse_url(url, setting="the URL")
    assert install in str(missing.value)


def test_a_driver_whose_errors_have_no_numbers_is_refused_by_url_and_by_engine() -> None:
    # given mssql-python, whatever is installed
    module = SimpleNamespace(paramstyle="qmark", version="1.16.0", pooling=lambda **_: None)
    engine = create_engine("mssql+mssqlpython://bob:s3cret@h/d", module=module)
    givens: list[dict[str, Any]] = [
        {"url": "mssql+mssqlpython://bob:s3cret@h/d"},
        {"url": "sqlserver+mssqlpython://bob:s3cret@h/d"},
        {"engine": engine},
    ]
    for given in givens:
        # then it says why, and what to use
        with pytest.raises(InvalidSetting, match=r"no number.*use mssql\+pyodbc") as refused:
            open_event_store(**given)
        assert "s3cret" not in str(refused.value)


def test_missing_sqlalchemy_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cqrs_celery.backends.sql.choosing", None)
    with pytest.raises(MissingDependency, match=r"in a checkout of cqrs-celery.*\[sql\]"):
        open_event_store("sqlite:///events.db")


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "redis://:s3cret@localhost/0",
        "mysql://bob:s3cret@localhost/shop",
        "postgresql+asyncpg://bob:s3cret@localhost/shop",
        "postgresql://bob:s3cret@localhost:port/shop",
        "sqlite://",
        "sqlite:///:memory:",
        "",
    ],
)
def test_a_url_that_names_no_store_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(InvalidSetting) as refused:
        open_event_store(url)
    assert "s3cret" not in f"{refused.value!r} {refused.value.__cause__!r}"
    assert refused.value.accepted


def test_url_and_engine_are_one_of_two(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/events.db")
    arguments: list[dict[str, Any]] = [{}, {"url": "sqlite:///x.db", "engine": engine}]
    for given in arguments:
        with pytest.raises(InvalidSetting, match="one of the two"):
            open_event_store(**given)


def test_a_read_url_is_of_the_same_engine(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetting, match="a replica of the same"):
        open_event_store(f"sqlite:///{tmp_path}/a.db", read_url="postgresql://h/d")


def test_no_password_is_shown() -> None:
    url = "postgresql://bob:s3cret@db:5433/shop?password=s3cret&sslpassword=s3cret"
    assert where(parse_url(url, setting="the URL")) == "postgresql://db:5433/shop"
    assert "s3cret" not in repr(open_event_store(url))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://bob:s3cret@/shop?host=one:5432&host=two:5433", "one:5432,two:5433"),
        ("postgresql://bob:s3cret@/shop?host=one,two&port=5432,5433", "one:5432,two:5433"),
        ("postgresql://bob:s3cret@/shop?host=one,two&port=5432", "one:5432,two:5432"),
        ("postgresql://bob:s3cret@/shop?host=one,two", "one,two"),
        ("postgresql://bob:s3cret@/shop?host=/run/postgresql", ""),
        ("postgresql://bob:s3cret@/shop", ""),
    ],
)
def test_every_host_of_a_url_with_several_is_shown(url: str, shown: str) -> None:
    assert where(parse_url(url, setting="the URL")) == f"postgresql://{shown}/shop"


@pytest.mark.parametrize("url", ["postgres://h/d", "sqlserver://h/d?driver=x"])
def test_the_setting_takes_every_url_that_a_store_is_opened_by(url: str) -> None:
    app = Celery("shop", changes={"cqrs_event_store": url, "cqrs_event_store_read_url": url})
    assert read_settings(app).event_store == url


def test_a_file_that_is_not_there_is_not_made_by_a_look_at_its_tables(tmp_path: Path) -> None:
    # given a store in a file that nobody has made, as in the wrong folder
    file = tmp_path / "events.db"
    store: Any = open_event_store(f"sqlite:///{file}")
    # when its tables are looked for
    with pytest.raises(SchemaError, match="there is no such file") as missing:
        check_schema(store)
    # then it is told where, and no empty file is left behind
    assert str(file) in str(missing.value)
    assert not file.exists()
    store.close()
