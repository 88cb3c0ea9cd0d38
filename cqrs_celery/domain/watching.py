"""Note which aggregates record something while a handler runs, so that none is forgotten."""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .aggregate import Aggregate

_watched: ContextVar[list[Aggregate] | None] = ContextVar("cqrs_watched", default=None)


def note_recording(aggregate: Aggregate) -> None:
    """Note an aggregate that records its first event since it was loaded or saved."""
    watched = _watched.get()
    if watched is not None:
        watched.append(aggregate)


class Watching:
    """The aggregates that record something inside its `with` block.

    Attributes:
        found: themselves, in the order of their first recording.
        outer: the same of the block around it; None if there is none.
    """

    __slots__ = ("_token", "found", "outer")

    def __init__(self) -> None:
        self.found: list[Aggregate] = []
        self.outer: list[Aggregate] | None = None

    def __enter__(self) -> None:
        self.outer = _watched.get()
        self._token: Token[list[Aggregate] | None] = _watched.set(self.found)

    def __exit__(self, *_: object) -> None:
        # A web framework may end a generator's block in another context than it began in; there,
        # nothing was watched.
        with suppress(ValueError):
            _watched.reset(self._token)
