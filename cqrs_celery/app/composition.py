"""Build the parts of a CQRS application from its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import celery

from ..dispatch.bus import Bus
from ..dispatch.injection import Providers
from ..dispatch.middleware import Middleware
from ..dispatch.runtime import Runtime
from ..errors import InvalidSetting
from ..messages.serializer import Serializer
from ..session.repository import Repository
from ..store.events import StoredEvent
from ..store.ports import EventStore, SnapshotStore
from .broker import check_broker, has_reliable_queue
from .caching import open_cache
from .delivery import refusing_undelivered
from .first_sends import open_first_sends
from .locks import open_locks
from .no_store import NoEventStore
from .relay_opening import open_relay
from .relaying import RelayParts
from .settings import BROKER, Settings
from .snapshots import open_snapshots
from .stores import open_store
from .topics import open_subscriptions


def compose(
    app: celery.Celery,
    settings: Settings,
    store: EventStore,
    *,
    snapshots: SnapshotStore | None,
    middleware: Sequence[Middleware],
    providers: Providers,
) -> tuple[Runtime, RelayParts | None]:
    """Return an application's runtime, and the parts of its relay if it has one.

    Args:
        app: the Celery application.
        settings: its settings.
        store: keeps the events.
        snapshots: keeps the snapshots; None to keep them in the event store.
        middleware: wraps every handler, the first one outermost.
        providers: provide the values that handlers may ask for by type.

    Raises:
        InvalidSetting: a setting does not fit the broker or the store.
        MissingDependency: a driver is not installed.
    """
    serializer = Serializer(
        settings.application,
        compression=settings.compression,
        max_bytes=settings.max_message_bytes,
    )
    locks = open_locks(app, store)
    repository = _open_repository(app, settings, store, serializer, snapshots)
    bus = Bus(
        repository, serializer, app=app, locks=locks, middleware=middleware, providers=providers
    )
    is_reliable = has_reliable_queue(app)
    relay = open_relay(app, store, settings.application, is_reliable=is_reliable)
    runtime = Runtime(
        app,
        serializer,
        store,
        bus,
        settings.command_id_ttl_s,
        settings.dead_letters,
        subscriptions=open_subscriptions(app, store, relay, is_reliable=is_reliable),
        sent=open_first_sends(app, is_reliable=is_reliable),
    )
    return runtime, relay


def _open_repository(
    app: celery.Celery,
    settings: Settings,
    store: EventStore,
    serializer: Serializer,
    snapshots: SnapshotStore | None,
) -> Repository:
    return Repository(
        store,
        serializer,
        snapshots=open_snapshots(app, settings, store, snapshots),
        cache=open_cache(app, settings),
        check=refusing_undelivered(store),
    )


def open_store_or_none(
    app: celery.Celery, settings: Settings, *, deliver: Callable[[Sequence[StoredEvent]], None]
) -> EventStore:
    """Return the event store that the settings name, or a stand-in for an application without one.

    Args:
        app: the Celery application, whose broker the store may share.
        settings: its settings, which name the store.
        deliver: delivers committed events to subscribers, for a store that does not do so itself.

    Raises:
        InvalidSetting: the settings name the broker explicitly, and it is not the reliable queue.
        MissingDependency: the store's driver is not installed.
    """
    if settings.event_store == BROKER:
        try:
            check_broker(app)
        except InvalidSetting as error:
            if app.conf.get("cqrs_event_store") is not None:
                raise
            # An application that names no store may need none.
            return NoEventStore(error)
    return open_store(app, settings, deliver=deliver)
