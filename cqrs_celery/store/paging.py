"""Read a store's events whole, in pages, so that no single question is for too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from .events import StoredEvent

#: Events read at once, where somebody wants all there are.
PAGE: Final = 1000


class ReadPage(Protocol):
    """A store's `read_all`, with a limit."""

    def __call__(self, *, after_position: int, limit: int) -> Sequence[StoredEvent]:
        """Return the events behind a position, a number of them at most."""


def read_to_the_end(read_page: ReadPage, after_position: int) -> list[StoredEvent]:
    """Return all events behind a position, up to the store's end.

    Args:
        read_page: reads some of them; an empty page is the end.
        after_position: the first one returned is the next event behind this position.
    """
    found: list[StoredEvent] = []
    while page := read_page(after_position=after_position, limit=PAGE):
        found += page
        after_position = page[-1].global_position
    return found
