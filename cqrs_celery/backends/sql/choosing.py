"""Choose the engine's store for a URL or a SQLAlchemy engine."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from ...errors import InvalidSetting
from ...store.relay_ports import LeaseCheck
from ..postgresql.event_store import PostgresqlEventStore
from ..sqlite.event_store import SqliteEventStore, prepare_engine
from ..sqlserver.event_store import SqlServerEventStore
from .engine import driver_refusal, make_engine, parse_url
from .event_store import SqlEventStore

_STORES: dict[str, type[SqlEventStore]] = {
    "postgresql": PostgresqlEventStore,
    "mssql": SqlServerEventStore,
    "sqlite": SqliteEventStore,
}


def open_sql_store(
    url: str | None,
    *,
    engine: Engine | None = None,
    read_url: str | None = None,
    lease_check: LeaseCheck | None = None,
) -> SqlEventStore:
    """Return the store for a URL or an engine; `open_event_store` says more."""
    is_own_engine = engine is None
    if engine is None:
        engine = _own_engine(parse_url(url or "", setting="the URL"))
    backend = engine.dialect.name
    if backend not in _STORES:
        accepted = ", ".join(_STORES)
        raise InvalidSetting(
            f"the engine is for {backend}; an event store can be in {accepted}",
            setting="engine",
            accepted=accepted,
        )
    refusal = driver_refusal(backend, engine.dialect.driver)
    if refusal is not None:
        raise InvalidSetting(
            f"the engine can't be used: {refusal}", setting="engine", accepted="mssql+pyodbc://…"
        )
    read_engine = None
    if read_url is not None:
        read = parse_url(read_url, setting="the read URL")
        if read.get_backend_name() != backend:
            raise InvalidSetting(
                f"the read URL is for {read.get_backend_name()}, the store for {backend}; expected"
                " a replica of the same",
                setting="read_url",
                accepted=f"{backend}://…",
            )
        read_engine = _own_engine(read)
    return _STORES[backend](
        engine, read_engine=read_engine, lease_check=lease_check, is_own_engine=is_own_engine
    )


def _own_engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        if url.database in (None, "", ":memory:"):
            raise InvalidSetting(
                "an SQLite event store needs a file, sqlite:///events.db; in this process's memory"
                " alone, it is memory://",
                setting="the URL",
                accepted="sqlite:///file",
            )
        engine = make_engine(url)
        prepare_engine(engine)
        return engine
    return make_engine(url)
