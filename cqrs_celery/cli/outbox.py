"""`celery -A app cqrs outbox`: how far the relay is behind the SQL event store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..app.relaying import RelayParts
from ..errors import CQRSError, StoreUnavailable
from ..store.capabilities import place_of
from .application import cqrs_of
from .table import plain, print_table


@click.group(name="outbox", help="Monitor the relay of a SQL event store.")
def outbox() -> None:
    """Group the commands about the relay."""


@outbox.command(cls=CeleryCommand, name="status")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def status(context: click.Context, as_json: bool) -> None:
    """Show how many events are not yet on their subscribers' queues, and which relay is active.

    If the broker does not answer, only the database's facts are shown, and the exit code is 1.
    """
    cqrs = cqrs_of(context)
    try:
        store = cqrs.store
        if cqrs.relay is None:
            raise click.UsageError(
                f"the event store of {context.obj.app.main} needs no relay: {place_of(store)}"
            )
        row = _status(cqrs.relay)
    except CQRSError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(row, indent=2))
    else:
        _print(row)
    if row["error"]:
        # The JSON output includes the error.
        if not as_json:
            click.echo(f"Error: {plain(row['error'], keeps_lines=True)}", err=True)
        context.exit(1)


def _status(relay: RelayParts) -> dict[str, Any]:
    led = relay.leadership.led()
    row: dict[str, Any] = {
        "store": relay.store.where,
        "last": relay.outbox.last_position(),
        "relayed": None,
        "events_behind": None,
        "seconds_behind": None,
        "active_relay": led.leader if led is not None and led.is_live else None,
        "application": relay.application if led is not None and led.is_live else None,
        "broker": None if led is None else led.broker,
        "error": None,
    }
    try:
        relayed = relay.destination.position()
        broker_id = relay.destination.broker_id()
    except StoreUnavailable as error:
        return row | {"error": str(error)}
    if row["active_relay"] is None:
        other = relay.leadership.leader_of_another(broker_id)
        row["active_relay"], row["application"] = other or (None, None)
    pending = relay.outbox.pending(relayed or 0)
    behind = {"events_behind": pending.events, "seconds_behind": _age_s(pending.oldest_at)}
    return row | {"relayed": relayed} | behind


def _print(row: dict[str, Any]) -> None:
    seconds, relayed = row["seconds_behind"], row["relayed"]
    unknown = "?" if row["error"] else None
    print_table(
        ("store", "last", "relayed", "events behind", "behind by", "active relay"),
        [
            (
                row["store"],
                row["last"],
                unknown or ("never" if relayed is None else relayed),
                unknown or row["events_behind"],
                unknown or ("" if seconds is None else f"{seconds} s"),
                _relay_of(row),
            )
        ],
    )


def _relay_of(row: dict[str, Any]) -> str:
    if row["active_relay"] is None:
        return "none"
    return f"{row['active_relay']} ({row['application']})"


def _age_s(at: datetime | None) -> float | None:
    return None if at is None else round((datetime.now(UTC) - at).total_seconds(), 1)
