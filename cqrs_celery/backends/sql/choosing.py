"""Choose the engine's store for a URL or a SQLAlchemy engine."""

from __future__ import annotations

from typing import cast

from sqlalchemy import Engine

from ...errors import InvalidSetting
from ...store.relay_ports import LeaseCheck
from .backends import backend_of
from .engine import make_engine, parse_url
from .event_store import SqlEventStore


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
        own = parse_url(url or "", setting="the URL")
        backend = backend_of(own.get_backend_name())
        engine = make_engine(own, backend)
    else:
        backend = backend_of(engine.dialect.name)
    refusal = backend.driver_refusal(engine.dialect.driver)
    if refusal is not None:
        raise InvalidSetting(
            f"the engine can't be used: {refusal}", setting="engine", accepted=backend.example
        )
    read_engine = None
    if read_url is not None:
        read = parse_url(read_url, setting="the read URL")
        if read.get_backend_name() != backend.name:
            raise InvalidSetting(
                f"the read URL is for {read.get_backend_name()}, the store for {backend.name};"
                " expected a replica of the same",
                setting="read_url",
                accepted=f"{backend.name}://…",
            )
        read_engine = make_engine(read, backend)
    store = backend.store()(
        engine, read_engine=read_engine, lease_check=lease_check, is_own_engine=is_own_engine
    )
    return cast(SqlEventStore, store)
