"""`celery -A app cqrs …`: maintain queues, dead letters, tables of SQL stores, snapshots."""

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
    """A group whose commands end with one line, and no traceback, on an error of the package.

    Text that an error quotes, such as an id chosen by somebody else, can't control the terminal.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke a command.

        Raises:
            click.ClickException: the command raised one of the package's errors; it has its text.
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
    help="Maintain the reliable queue, its subscriptions, and SQL tables.",
)
def cqrs() -> None:
    """Group all commands."""


cqrs.add_command(dead_letters)
cqrs.add_command(queues)
cqrs.add_command(subscriptions)
cqrs.add_command(events)
cqrs.add_command(move_queues)
cqrs.add_command(outbox)
cqrs.add_command(schema)
cqrs.add_command(snapshots)
cqrs.add_command(commands)
