"""The results of commands and events that have committed before, from the store's records."""

from __future__ import annotations

import logging

import msgspec

from ..store.events import CommandOutcome
from .definitions import Definition
from .results import CommandResult

logger = logging.getLogger(__name__)


def result_of(found: CommandOutcome, definition: Definition) -> CommandResult:
    """Return the recorded result of a command that has committed before, in its declared type."""
    value = definition.returned.read(found.outcome)
    return CommandResult(value=value, position=found.position or None, is_repeated=True)


def committed_in_time(found: CommandOutcome, definition: Definition) -> CommandResult:
    """Return the result of a commit during or after which a soft time limit came, and log that."""
    handler = ".".join(definition.place)
    logger.warning(
        "a soft time limit came while %s committed, or after that; its commit stands",
        handler,
        extra={"handler": handler},
    )
    return msgspec.structs.replace(result_of(found, definition), is_repeated=False)
