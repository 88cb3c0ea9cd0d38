"""`celery -A app cqrs commands`: maintain the command ids that a SQL event store remembers."""

from __future__ import annotations

import json

import click
from celery.bin.base import CeleryCommand

from .application import sql_store_of


@click.group(name="commands", help="Maintain the command ids that a SQL event store remembers.")
def commands() -> None:
    """Group the commands about command ids."""


@commands.command(cls=CeleryCommand, name="purge")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def purge(context: click.Context, as_json: bool) -> None:
    """Delete the command ids that are older than cqrs_command_id_ttl_s.

    The relay does so every minute; use this command if no worker runs.
    """
    store = sql_store_of(context, otherwise="forgets them itself")
    deleted = 0
    while batch := store.forget_expired_commands():
        deleted += batch
    click.echo(json.dumps({"deleted": deleted}) if as_json else f"deleted {deleted:,} command ids")
