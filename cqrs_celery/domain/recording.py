"""The list to which each aggregate that records an event is added, while `Watching` is active."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: The aggregates that have recorded an event in a `Watching` block; None outside such a block.
watched: ContextVar[list[Any] | None] = ContextVar("cqrs_watched", default=None)


def note_recording(aggregate: object) -> None:
    """Add an aggregate that records its first event since it was loaded or saved."""
    found = watched.get()
    if found is not None:
        found.append(aggregate)
