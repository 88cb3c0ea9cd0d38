"""The list to which each aggregate that records something is added, if anybody watches."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

#: The aggregates that have recorded something where somebody watches; None if nobody does.
watched: ContextVar[list[Any] | None] = ContextVar("cqrs_watched", default=None)


def note_recording(aggregate: object) -> None:
    """Note an aggregate that records its first event since it was loaded or saved."""
    found = watched.get()
    if found is not None:
        found.append(aggregate)
