"""Open an event store by its URL, or on an existing engine of the application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import InvalidSetting, MissingDependency
from ..extras import how_to_install
from ..store.ports import EventStore
from .memory.event_store import MemoryEventStore

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..store.relay_ports import LeaseCheck

#: The URL of the store in this process's memory.
MEMORY = "memory://"

#: The beginning of the URL of a store in one of Django's databases.
DJANGO = "django://"


def open_event_store(
    url: str | None = None,
    *,
    engine: Engine | None = None,
    read_url: str | None = None,
    lease_check: LeaseCheck | None = None,
) -> EventStore:
    """Return an event store; it connects at its first use.

        store = open_event_store("postgresql://shop@localhost/shop")
        cqrs = CQRS(app, store=store)

    Its tables are created by `celery -A app cqrs schema create`, or by
    `cqrs_celery.backends.sql.schema.create_schema`.

    Args:
        url: postgresql://, mssql+pyodbc://, sqlite:///file, or memory://. If it names no driver,
            the installed one is used. Or django:// and the alias of one of Django's databases:
            then events are committed in the transactions of its models.
        engine: SQLAlchemy's, in place of a URL; its pool is shared with its other users.
        read_url: the URL of a replica. Streams, and all events in order, are read there. What this
            process has just written, and what the relay delivers, is read from the primary.
        lease_check: returns whether a worker still holds its message; called right before a commit
            under a lease.

    Raises:
        InvalidSetting: the URL names no event store, or these arguments don't go together.
        MissingDependency: SQLAlchemy, Django, or the database's driver, is not installed.
    """
    if url == MEMORY and engine is None:
        return MemoryEventStore()
    if url is not None and engine is None and url.startswith(DJANGO):
        return _open_in_django(url, read_url=read_url, lease_check=lease_check)
    try:
        from .sql.choosing import open_sql_store
    except ImportError as error:
        raise MissingDependency(
            f"a SQL event store needs SQLAlchemy 2.1, which can't be imported ({error}). Install it"
            f" with the database's driver: {how_to_install('postgresql')}; for SQL Server the extra"
            " is [sqlserver], for SQLite [sql]"
        ) from error
    if (url is None) == (engine is None):
        raise InvalidSetting(
            "an event store is opened by a URL or on an engine; expected exactly one of the two",
            setting="url",
            accepted="a URL, or engine=…",
        )
    options: dict[str, Any] = {"read_url": read_url, "lease_check": lease_check}
    return open_sql_store(url, engine=engine, **options)


def _open_in_django(
    url: str, *, read_url: str | None, lease_check: LeaseCheck | None
) -> EventStore:
    if read_url is not None:
        raise InvalidSetting(
            "a store in Django's database reads from that database; expected no read URL",
            setting="read_url",
            accepted="None",
        )
    try:
        from .django.event_store import open_django_store
    except ImportError as error:
        raise MissingDependency(
            "an event store in Django's database needs Django and SQLAlchemy 2.1; one of them can't"
            f" be imported ({error}). Install them: {how_to_install('postgresql', 'django')}; for"
            " SQLite the extra is [sql]"
        ) from error
    return open_django_store(url, lease_check=lease_check)
