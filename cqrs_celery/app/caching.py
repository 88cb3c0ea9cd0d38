"""Open the cache of aggregates that the settings name."""

from __future__ import annotations

import celery

from ..backends.memory.state_cache import MemoryStateCache
from ..backends.redis.state_cache import RedisStateCache
from ..errors import InvalidSetting
from ..session.cache import AggregateCache, TieredCache
from ..store.ports import StateCache
from ..transport.clients import BrokerClient
from .settings import IN_BOTH, IN_MEMORY, IN_REDIS, OFF, Settings

#: Seconds to wait for the cache's Redis. If it does not answer, the aggregate is loaded from the
#: event store.
ANSWER_S = 2.0


def open_cache(app: celery.Celery, settings: Settings) -> AggregateCache | None:
    """Return the cache of an application's aggregates, or None if caching is off.

    Args:
        app: the Celery application; a cache in Redis is in its broker.
        settings: its settings, which say where aggregates are cached.

    Raises:
        InvalidSetting: the setting `cqrs_cache` names Redis, but the broker is not a Redis server.
    """
    if settings.cache == OFF:
        return None
    tiers: list[StateCache] = []
    if settings.cache in (IN_MEMORY, IN_BOTH):
        tiers.append(MemoryStateCache(size=settings.cache_size, ttl_s=settings.cache_ttl_s))
    if settings.cache in (IN_REDIS, IN_BOTH):
        tiers.append(_in_redis(app, settings))
    return AggregateCache(TieredCache(*tiers))


def _in_redis(app: celery.Celery, settings: Settings) -> RedisStateCache:
    connection = app.connection_for_write()
    if connection.get_transport_cls().driver_type != "redis":
        raise InvalidSetting(
            f"the setting cqrs_cache is {settings.cache!r}, and the broker {connection.as_uri()} is"
            f" no Redis; accepted: {OFF!r} or {IN_MEMORY!r}, or a Redis broker",
            setting="cqrs_cache",
            accepted=f"{OFF!r} or {IN_MEMORY!r}",
        )
    options = app.conf.broker_transport_options or {}
    return RedisStateCache(
        BrokerClient(app.connection_for_write, socket_timeout_s=ANSWER_S, retries=0),
        ttl_s=settings.cache_ttl_s,
        prefix=str(options.get("global_keyprefix", "")),
        where=connection.as_uri(),
    )
