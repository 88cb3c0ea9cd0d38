"""Choose where the locks of aggregates are kept: where the events are, or where the broker is."""

from __future__ import annotations

import celery

from ..backends.memory.locks import MemoryLocks
from ..backends.redis.locks import LOOK_S, RedisLocks
from ..dispatch.locks import Locks
from ..store.capabilities import capabilities_of
from ..store.ports import EventStore
from ..transport.clients import BrokerClient

#: Seconds to wait for an answer: longer than a waiter blocks. Without any end, a peer that went
#: away without a word would hold up its worker for good.
ANSWER_S = LOOK_S + 5.0


def open_locks(app: celery.Celery, store: EventStore) -> Locks | None:
    """Return what gives locks; None if the events are not in this process, and the broker no Redis.

    Args:
        app: whose broker keeps them.
        store: events in this process need locks in this process only.
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
