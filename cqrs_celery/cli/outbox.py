"""`celery -A app cqrs outbox`: how far the relay is behind the SQL event store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..errors import CQRSError
from .application import cqrs_of
from .table import print_table


@click.group(name="outbox", help="Look after the relay of a SQL event store.")
def outbox() -> None:
    """Gather the commands."""


@outbox.command(cls=CeleryCommand, name="status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show the events that subscribers' queues do not have yet, and which relay sees to them."""
    app: Any = context.obj.app
    cqrs = cqrs_of(context)
    try:
        store = cqrs.store
        if cqrs.relay is None:
            raise click.UsageError(f"the event store of {app.main} needs no relay: {store!r}")
        relayed = cqrs.relay.destination.position()
        pending = cqrs.relay.outbox.pending(relayed or 0)
        led = cqrs.relay.leadership.led()
        row = {
            "store": store.where,
            "last": cqrs.relay.outbox.last_position(),
            "relayed": relayed,
            "events_behind": pending.events,
            "seconds_behind": _age_s(pending.oldest_at),
            "active_relay": led.leader if led is not None and led.is_live else None,
            "broker": None if led is None else led.broker,
        }
    except CQRSError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(row, indent=2))
        return
    seconds = row["seconds_behind"]
    print_table(
        ("store", "last", "relayed", "events behind", "behind by", "active relay"),
        [
            (
                row["store"],
                row["last"],
                "never" if relayed is None else relayed,
                row["events_behind"],
                "" if seconds is None else f"{seconds} s",
                row["active_relay"] or "none",
            )
        ],
    )


def _age_s(at: datetime | None) -> float | None:
    return None if at is None else round((datetime.now(UTC) - at).total_seconds(), 1)
