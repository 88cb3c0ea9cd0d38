"""Connect to the broker of the application that `celery -A` names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from kombu.exceptions import KombuError

from ..transport import TRANSPORT
from ..transport.channel import Channel
from ..transport.options import check_is_dict
from ..transport.transport import Transport


def is_reliable(context: click.Context) -> bool:
    """Return whether the application's broker is the reliable queue, without connecting to it.

    Raises:
        InvalidSetting: the transport options are wrong.
    """
    check_is_dict(context.obj.app.conf.broker_transport_options)
    with context.obj.app.connection_for_read() as connection:
        return issubclass(connection.get_transport_cls(), Transport)


@contextmanager
def broker_channel(context: click.Context) -> Iterator[Channel]:
    """Provide a channel to the application's broker, with the application's exchanges declared.

    Raises:
        click.UsageError: the broker is not the reliable queue.
        click.ClickException: the broker does not answer, or refuses the request.
        InvalidSetting: the transport options are wrong.
    """
    app: Any = context.obj.app
    check_is_dict(app.conf.broker_transport_options)
    with app.connection_for_read() as connection:
        if not issubclass(connection.get_transport_cls(), Transport):
            raise click.UsageError(
                f"the broker {connection.as_uri()} is not the reliable queue: set"
                f" broker_transport = {TRANSPORT!r}, or a URL that begins with reliable-"
            )
        try:
            channel = connection.channel()
            for queue in app.amqp.queues.values():
                # Otherwise, a topic exchange would be taken for a direct one.
                queue.exchange(channel).declare()
            yield channel
        except (*connection.connection_errors, *connection.channel_errors, KombuError) as error:
            # Sentinel's text continues with all its clients and their settings.
            reason = str(error).partition(" : <")[0]
            raise click.ClickException(
                f"the broker {connection.as_uri()} does not answer: {reason}"
            ) from error


def is_reply_queue(app: Any, queue: str) -> bool:
    """Return whether a queue is for replies to remote control, which exist for seconds."""
    return queue.endswith(f".{app.control.mailbox.reply_exchange.name}")
