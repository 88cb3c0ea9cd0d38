"""Open the topics to publish messages to, and the registration of subscribers."""

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
        # Only the retry policy retries.
        BrokerClient(app.connection_for_write, retries=0),
        prefix=str(options.get("global_keyprefix", "")),
        dedup_ttl_ms=int(options.get("dedup_ttl_s", Channel.dedup_ttl_s) * 1000),
        retry_policy=conf.task_publish_retry_policy if conf.task_publish_retry else None,
        where=app.connection_for_write().as_uri(),
    )


def open_subscriptions(
    app: celery.Celery, store: EventStore, relay: RelayParts | None, *, is_reliable: bool
) -> Subscriptions | None:
    """Return the registration of subscribers: the store's, else the relay's, else the broker's.

    Args:
        app: the Celery application, which has the broker.
        store: the event store; it registers subscribers if it delivers within its append.
        relay: the parts of the relay, which register subscribers; None without a relay.
        is_reliable: whether the broker is the reliable queue, which knows its subscribers.

    Returns:
        The registration; None if subscribers are registered nowhere.
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
