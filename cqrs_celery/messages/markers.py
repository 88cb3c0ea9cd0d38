"""Find objects that Kombu's JSON reads as values of its own types, or can't read."""

from __future__ import annotations

from typing import Final

import msgspec

#: The only keys of such an object.
MARKERS: Final = frozenset({"__type__", "__value__"})

#: Such an object in an error, with the remedy.
MARKED: Final = (
    f"an object whose only keys are {' and '.join(sorted(MARKERS))}, which Celery's JSON reads as"
    " something else. Rename one of them"
)


def has_marked_object(data: bytes) -> bool:
    """Return whether JSON has an object with only these two keys, at any depth."""
    # A search of the bytes nearly always decides it.
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
