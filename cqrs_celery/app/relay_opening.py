"""Build the parts of a relay: the outbox that it reads, and the destination of its events.

A store that delivers within its append needs no relay. With the reliable queue as broker, each
event is put on the subscribers' queues exactly once. With any other broker, it is sent as one
ordinary task per subscription, at least once.
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
from .broker import check_confirms
from .celery_destination import CeleryDestination
from .relaying import Destination, RelayParts

#: Seconds to wait for the server to accept a wake-up; no commit waits for it.
WAKE_ANSWER_S: Final = 0.2

#: Seconds to wait for the server when a lease is looked up, with one retry. The transaction that is
#: open meanwhile may block others.
LEASE_ANSWER_S: Final = 5.0


def open_relay(
    app: celery.Celery,
    store: EventStore,
    application: str,
    *,
    is_reliable: bool,
) -> RelayParts | None:
    """Return the parts of the relay of an application's store, or None if it has no outbox.

    With the reliable queue, the store's commits wake the relay, and check that their lease is held.

    Args:
        app: the Celery application, which has the broker.
        store: the event store; it has an outbox if it needs a relay.
        application: the application's name.
        is_reliable: whether the broker is the reliable queue.

    Raises:
        InvalidSetting: the settings name RabbitMQ as broker, without publisher confirms.
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
        # Without a broker in the settings, the bus may be used in this process alone. A worker's
        # broker is checked in any case.
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
