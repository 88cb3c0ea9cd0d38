"""Choose where the locks of aggregates are kept: in this process, or in the broker's Redis."""

from __future__ import annotations

import celery

from ..backends.memory.locks import MemoryLocks
from ..backends.redis.locks import LOOK_S, RedisLocks
from ..dispatch.locks import Locks
from ..store.capabilities import capabilities_of
from ..store.ports import EventStore
from ..transport.clients import BrokerClient

#: Seconds to wait for an answer, longer than a waiter blocks. Without a limit, a connection that
#: breaks unnoticed would block its worker forever.
ANSWER_S = LOOK_S + 5.0


def open_locks(app: celery.Celery, store: EventStore) -> Locks | None:
    """Return the locks of aggregates, or None if nothing can keep them.

    That is so if the event store is outside this process, and the broker is not a Redis server.

    Args:
        app: the Celery application, whose broker keeps the locks.
        store: the event store; one in this process needs locks in this process only.
    """
    if capabilities_of(store).is_in_process:
        return MemoryLocks()
    connection = app.connection_for_write()
    if connection.get_transport_cls().driver_type != "redis":
        return None
    options = app.conf.broker_transport_options or {}
    return RedisLocks(
        BrokerClient(app.connection_for_write, socket_timeout_s=ANSWER_S),
        prefix=str(options.get("global_keyprefix", "")),
        where=connection.as_uri(),
    )
