"""Open the event store that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import celery

from ..backends.memory.event_store import MemoryEventStore
from ..backends.opening import open_event_store
from ..backends.redis.event_store import RedisEventStore
from ..store.events import StoredEvent
from ..store.ports import EventStore
from ..transport.clients import BrokerClient
from ..transport.envelope import BODY
from .settings import BROKER, MEMORY, Settings


def open_store(
    app: celery.Celery,
    settings: Settings,
    *,
    deliver: Callable[[Sequence[StoredEvent]], None],
) -> EventStore:
    """Open the event store of an application.

    Args:
        app: the Celery application, whose broker the store may share.
        settings: its settings, which name the store.
        deliver: delivers committed events to subscribers, for a store that does not do so itself.
    """
    if settings.event_store == MEMORY:
        return MemoryEventStore(on_commit=deliver)
    if settings.event_store != BROKER:
        return open_event_store(settings.event_store, read_url=settings.event_store_read_url)
    options = app.conf.broker_transport_options or {}
    return RedisEventStore(
        BrokerClient(app.connection_for_write),
        prefix=str(options.get("global_keyprefix", "")),
        body=BODY,
        where=app.connection_for_write().as_uri(),
    )
