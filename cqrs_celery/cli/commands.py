"""`celery -A app cqrs commands`: look after what is remembered of commands."""

from __future__ import annotations

import json

import click
from celery.bin.base import CeleryCommand

from .application import sql_store_of


@click.group(name="commands", help="Look after the commands that a SQL event store remembers.")
def commands() -> None:
    """Gather the commands."""


@commands.command(cls=CeleryCommand, name="purge")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def purge(context: click.Context, as_json: bool) -> None:
    """Delete the ids of commands that are remembered no longer than cqrs_command_id_ttl_s.

    The relay does it each minute; this is for where no worker runs.
    """
    store = sql_store_of(context, otherwise="forgets them itself")
    deleted = 0
    while batch := store.forget_expired_commands():
        deleted += batch
    click.echo(json.dumps({"deleted": deleted}) if as_json else f"deleted {deleted:,} command ids")
