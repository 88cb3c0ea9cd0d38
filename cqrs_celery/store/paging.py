"""Read all of a store's events, in pages, so that no single query returns too much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from .events import StoredEvent

#: Events in a page.
PAGE: Final = 1000


class ReadPage(Protocol):
    """A store's `read_all`, with a limit."""

    def __call__(self, *, after_position: int, limit: int) -> Sequence[StoredEvent]:
        """Return the events after a position, at most `limit` of them."""


def read_to_the_end(read_page: ReadPage, after_position: int) -> list[StoredEvent]:
    """Return all events after a position, up to the store's end.

    Args:
        read_page: reads a page of events; an empty page is the end.
        after_position: the position after which to begin.
    """
    found: list[StoredEvent] = []
    while page := read_page(after_position=after_position, limit=PAGE):
        found += page
        after_position = page[-1].global_position
    return found
