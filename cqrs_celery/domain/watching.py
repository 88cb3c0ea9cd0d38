"""Collect the aggregates that record events while a handler runs, so that none is forgotten."""

from __future__ import annotations

from contextlib import suppress
from contextvars import Token

from .aggregate import Aggregate
from .recording import watched


class Watching:
    """The aggregates that record events inside its `with` block.

    Attributes:
        found: the aggregates, in the order of their first recording.
        outer: the list of the enclosing block; None if there is none.
    """

    __slots__ = ("_token", "found", "outer")

    def __init__(self) -> None:
        self.found: list[Aggregate] = []
        self.outer: list[Aggregate] | None = None

    def __enter__(self) -> None:
        self.outer = watched.get()
        self._token: Token[list[Aggregate] | None] = watched.set(self.found)

    def __exit__(self, *_: object) -> None:
        # A web framework may end a generator's block in another context than it began in; that
        # context has nothing to reset.
        with suppress(ValueError):
            watched.reset(self._token)
