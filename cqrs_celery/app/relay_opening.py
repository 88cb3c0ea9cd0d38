"""Put together what a relay needs: an outbox to read, and queues to give its events to.

A store that delivers within its append needs none. With the reliable queue as broker, each event is
put on the subscribers' queues exactly once. With any other broker, it is sent as one ordinary task
per subscription, at least once.
"""

from __future__ import annotations

from typing import Final

import celery

from ..backends.redis.relay_queue import RelayQueue
from ..store.capabilities import capabilities_of
from ..store.ports import EventStore
from ..store.relay_ports import Outbox
from ..transport.clients import BrokerClient
from ..transport.envelope import BODY
from .celery_destination import CeleryDestination
from .relaying import Destination, RelayParts
from .settings import check_confirms

#: Seconds to wait for the server to take a wake-up; no commit waits for it.
WAKE_ANSWER_S: Final = 0.2

#: Seconds to wait, twice at most, for what the server knows of a lease. A transaction is open
#: meanwhile, whose rows others may wait for.
LEASE_ANSWER_S: Final = 5.0


def open_relay(
    app: celery.Celery,
    store: EventStore,
    application: str,
    *,
    is_reliable: bool,
) -> RelayParts | None:
    """Return what a relay of an application's store needs; None if the store delivers itself.

    The store's commits then wake it, and ask the queue whether their lease is held.

    Args:
        app: has the broker.
        store: has an outbox, if it needs a relay.
        application: whose relay it is.
        is_reliable: whether the broker is the reliable queue.

    Raises:
        InvalidSetting: a broker is named that is RabbitMQ, and does not confirm what is sent.
    """
    capabilities = capabilities_of(store)
    relayed = capabilities.relayed
    if relayed is None:
        return None
    broker = app.connection_for_write().as_uri()
    leadership = relayed.leadership(application, broker=broker)
    destination: Destination
    if is_reliable:
        destination = _reliable_queue(app, relayed.outbox, broker)
    else:
        # Who names none may use the bus in this process alone; a worker is checked anyway.
        if app.conf.broker_write_url or app.conf.broker_url or app.conf.broker_transport:
            check_confirms(app)
        destination = CeleryDestination(app, relayed.outbox, leadership, application, where=broker)
    if destination.has_leases:
        relayed.on_commit = destination.wake
        if relayed.lease_check is None:
            relayed.lease_check = destination.is_held
    return RelayParts(relayed, destination, application, leadership, replica=capabilities.replica)


def _reliable_queue(app: celery.Celery, outbox: Outbox, broker: str) -> RelayQueue:
    options = app.conf.broker_transport_options or {}
    return RelayQueue(
        BrokerClient(app.connection_for_write),
        store_id=lambda: outbox.store_id,
        prefix=str(options.get("global_keyprefix", "")),
        body=BODY,
        where=broker,
        wake_client=BrokerClient(
            app.connection_for_write, socket_timeout_s=WAKE_ANSWER_S, retries=0
        ),
        lease_client=BrokerClient(
            app.connection_for_write, socket_timeout_s=LEASE_ANSWER_S, retries=1
        ),
    )
