"""Find objects that Kombu's JSON reads as values of types of its own, or fails on."""

from __future__ import annotations

from typing import Final

import msgspec

#: The keys of such an object, which has no others.
MARKERS: Final = frozenset({"__type__", "__value__"})

#: What an error calls it, and what to do.
MARKED: Final = (
    f"an object with the keys {' and '.join(sorted(MARKERS))} alone, which Celery's JSON reads as"
    " something else. Rename one of them"
)


def has_marked_object(data: bytes) -> bool:
    """Return whether JSON has an object of the two keys alone, at any depth."""
    # Nearly always told by a search of the bytes.
    if b'"__type__"' not in data or b'"__value__"' not in data:
        return False
    waiting = [msgspec.json.decode(data)]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if one.keys() == MARKERS:
                return True
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one
    return False
