"""Open what messages are published through, where the broker is the reliable queue."""

from __future__ import annotations

import celery

from ..backends.redis.event_store import RedisEventStore
from ..backends.redis.topics import Topics
from ..store.capabilities import capabilities_of
from ..store.ports import EventStore, Subscriptions
from ..transport.channel import Channel
from ..transport.clients import BrokerClient
from .relaying import RelayParts


def open_topics(app: celery.Celery) -> Topics:
    """Return the topics of an application's broker, which must be the reliable queue."""
    options = app.conf.broker_transport_options or {}
    conf = app.conf
    return Topics(
        # Repeated by the policy alone.
        BrokerClient(app.connection_for_write, retries=0),
        prefix=str(options.get("global_keyprefix", "")),
        dedup_ttl_ms=int(options.get("dedup_ttl_s", Channel.dedup_ttl_s) * 1000),
        retry_policy=conf.task_publish_retry_policy if conf.task_publish_retry else None,
        where=app.connection_for_write().as_uri(),
    )


def open_subscriptions(
    app: celery.Celery, store: EventStore, relay: RelayParts | None, *, is_reliable: bool
) -> Subscriptions | None:
    """Return where subscribers are registered: with the store, else with the broker, else nowhere.

    Args:
        app: whose broker it is.
        store: registers them itself, if it delivers within its append.
        relay: registers them, if it delivers.
        is_reliable: whether the broker is the reliable queue, which knows its subscribers.
    """
    own = capabilities_of(store).subscriptions
    if own is not None:
        return own
    if relay is not None:
        return relay
    if not is_reliable:
        return None
    options = app.conf.broker_transport_options or {}
    return RedisEventStore(
        BrokerClient(app.connection_for_write),
        prefix=str(options.get("global_keyprefix", "")),
        where=app.connection_for_write().as_uri(),
    )
