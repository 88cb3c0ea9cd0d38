"""`celery -A app cqrs …`: look at queues and dead letters, and bring stock queues over."""

from __future__ import annotations

import click

from .dead_letters import dead_letters
from .move import move_queues
from .queues import queues

__all__ = ["cqrs"]


@click.group(name="cqrs", help="Look after the reliable queue and its subscriptions.")
def cqrs() -> None:
    """Gather the commands."""


cqrs.add_command(dead_letters)
cqrs.add_command(queues)
cqrs.add_command(move_queues)
