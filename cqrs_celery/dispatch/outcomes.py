"""The results of what a store remembers: of a command or an event that has committed before."""

from __future__ import annotations

import logging

import msgspec

from ..store.events import CommandOutcome
from .definitions import Definition
from .results import CommandResult

logger = logging.getLogger(__name__)


def result_of(found: CommandOutcome, definition: Definition) -> CommandResult:
    """Return the result of a command that had committed before: the first one's, in its type."""
    value = definition.returned.read(found.outcome)
    return CommandResult(value=value, position=found.position or None, is_repeated=True)


def committed_in_time(found: CommandOutcome, definition: Definition) -> CommandResult:
    """Return the result of what has committed just before a soft time limit came, and log that."""
    handler = ".".join(definition.place)
    logger.warning(
        "a soft time limit came while %s committed, or after that; its commit stands",
        handler,
        extra={"handler": handler},
    )
    return msgspec.structs.replace(result_of(found, definition), is_repeated=False)
