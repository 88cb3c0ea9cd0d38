"""`celery -A app cqrs subscriptions`: who gets which events, and who no longer should."""

from __future__ import annotations

import json
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import QueueInspector
from .broker import broker_channel
from .table import plain, print_table


@click.group(name="subscriptions", help="See who gets which events, and remove who should not.")
def subscriptions() -> None:
    """Gather the commands."""


@subscriptions.command(cls=CeleryCommand, name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_subscriptions(context: click.Context, as_json: bool) -> None:
    """List the registered functions; one that no worker takes from is marked."""
    with broker_channel(context) as channel:
        rows = _rows(QueueInspector(channel.queue))
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ("subscription", "function's task", "events", "waiting", "dead", "workers"),
        [
            (row["subscription"], row["task"], ", ".join(row["events"]), row["waiting"],
             row["dead"], row["workers"] or "NONE")
            for row in rows
        ],
    )  # fmt: skip


@subscriptions.command(cls=CeleryCommand, name="remove")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Delete what waits, if nobody else uses the queue.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.pass_context
def remove(context: click.Context, name: str, purge: bool, dry_run: bool, is_sure: bool) -> None:
    """Let a function get no more events: NAME is its task's, or that of its whole subscription.

    What it was sent stays, unless it is purged. A worker that still has the function registers it
    again when it starts: deploy without it first.
    """
    with broker_channel(context) as channel:
        inspector = QueueInspector(channel.queue)
        found = inspector.subscribers()
        chosen = [one for one in found if name in (one.name, one.queue)]
        if not chosen:
            names = ", ".join(dict.fromkeys(one.queue for one in found)) or "none"
            raise click.UsageError(f"no subscription {name} is registered; there are: {names}")
        others = {one.queue for one in found if one not in chosen}
        purged = sorted({one.queue for one in chosen} - others) if purge else []
        for one in chosen:
            click.echo(plain(f"{one.name} gets {', '.join(one.topics)}"))
        for queue in purged:
            count = channel.queue.count(queue)
            waiting = count.ready + count.in_sequences + count.retrying + count.delayed
            click.echo(plain(f"{queue} has {waiting} messages that wait"))
        if dry_run:
            return
        if not is_sure:
            click.confirm("remove?", abort=True)
        # Where there is a SQL store, it remembers its subscribers too.
        cqrs = getattr(context.obj.app, "cqrs", None)
        registered = cqrs.runtime.subscriptions if cqrs is not None else None
        for one in chosen:
            if registered is not None:
                registered.unregister(one.name, one.topics)
            channel.queue.unsubscribe(one.name, one.topics)
        for queue in purged:
            click.echo(plain(f"{channel.queue.delete(queue)} messages of {queue} deleted"))


def _rows(inspector: QueueInspector) -> list[dict[str, Any]]:
    holdings = inspector.holdings()
    rows = []
    for one in inspector.subscribers():
        look = inspector.look(one.queue, holdings)
        rows.append(
            {
                "subscription": one.queue,
                "task": one.name,
                "events": list(one.topics),
                "waiting": look.ready + look.waiting + look.retrying + look.blocked + look.delayed,
                "dead": look.dead,
                "workers": sum(holding.consumes(one.queue) for holding in holdings),
            }
        )
    return rows
