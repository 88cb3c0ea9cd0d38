"""The broker of an application: its transport, as Kombu chooses it, and what it must be."""

from __future__ import annotations

from typing import Any

import celery

from ..errors import InvalidSetting
from ..transport import TRANSPORT, Transport
from ..transport.transport import SCHEMES
from .settings import BROKER


def transport_of(app: celery.Celery) -> type[Any] | None:
    """Return the class of the broker's transport; nothing is connected.

    Returns:
        The class; None if Kombu can't load what the settings name. Connecting raises that error.
    """
    try:
        found: type[Any] = app.connection_for_write().get_transport_cls()
    except (AttributeError, ImportError, KeyError, ValueError):
        return None
    return found


def has_reliable_queue(app: celery.Celery) -> bool:
    """Return whether the broker of an application is the reliable queue."""
    transport = transport_of(app)
    return transport is not None and issubclass(transport, Transport)


def check_broker(app: celery.Celery) -> None:
    """Check that the broker is the reliable queue, which the Redis event store delivers into.

    Raises:
        InvalidSetting: the broker is not the reliable queue.
    """
    if has_reliable_queue(app):
        return
    conf = app.conf
    url = str(conf.broker_write_url or conf.broker_url or "")
    found = url.partition("://")[0] or conf.broker_transport or "nothing"
    raise InvalidSetting(
        f"the event store is the broker's own Redis (cqrs_event_store = {BROKER!r}), so the broker"
        f" must be the reliable queue; found the transport {found!r}. Set"
        f" broker_transport = {TRANSPORT!r} next to a redis:// URL, or begin broker_url with one of"
        f" {', '.join(f'{scheme}://' for scheme in SCHEMES.values())}",
        setting="broker_transport",
        accepted=TRANSPORT,
    )


def check_confirms(app: celery.Celery) -> None:
    """Check that publisher confirms are on if RabbitMQ is the broker.

    Without them, a message that is sent while the connection breaks is lost unnoticed: a command,
    or an event that the relay counts as sent. They are not turned on here silently, since they cost
    each of the application's own messages a round trip.

    Raises:
        InvalidSetting: RabbitMQ is the broker, and publisher confirms are off.
    """
    transport = transport_of(app)
    is_amqp = transport is not None and transport.driver_type == "amqp"
    options = app.conf.broker_transport_options or {}
    if is_amqp and options.get("confirm_publish") is not True:
        raise InvalidSetting(
            "commands and events are sent over RabbitMQ, which does not confirm them"
            f" (broker_transport_options has confirm_publish = {options.get('confirm_publish')!r}):"
            " what is sent while a connection breaks would be lost unnoticed. Set"
            " broker_transport_options = {'confirm_publish': True}, in addition to what is there",
            setting="broker_transport_options['confirm_publish']",
            accepted="True",
        )
