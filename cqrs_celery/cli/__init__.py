"""`celery -A app cqrs …`: look after queues, dead letters, tables of SQL stores, snapshots."""

from __future__ import annotations

from typing import Any

import click

from ..errors import CQRSError
from .commands import commands
from .dead_letters import dead_letters
from .events import events
from .move import move_queues
from .outbox import outbox
from .queues import queues
from .schema import schema
from .snapshots import snapshots
from .subscriptions import subscriptions
from .table import plain

__all__ = ["cqrs"]


class _Commands(click.Group):
    """A group whose commands end with one line where the package refuses something.

    What an error quotes, such as an id that somebody else has chosen, does nothing to a terminal.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke a command.

        Raises:
            click.ClickException: it raised one of the package's errors, whose text this has.
        """
        try:
            return super().invoke(ctx)
        except CQRSError as error:
            raise click.ClickException(plain(error, keeps_lines=True)) from error
        except click.ClickException as error:
            vars(error)["message"] = plain(error.message, keeps_lines=True)
            raise


@click.group(
    cls=_Commands,
    name="cqrs",
    help="Look after the reliable queue, its subscriptions, and SQL tables.",
)
def cqrs() -> None:
    """Gather the commands."""


cqrs.add_command(dead_letters)
cqrs.add_command(queues)
cqrs.add_command(subscriptions)
cqrs.add_command(events)
cqrs.add_command(move_queues)
cqrs.add_command(outbox)
cqrs.add_command(schema)
cqrs.add_command(snapshots)
cqrs.add_command(commands)
