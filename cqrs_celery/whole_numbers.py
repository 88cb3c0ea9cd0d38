"""Tell whole numbers from other values of settings, options and class arguments.

True is an int in Python; as a number of seconds or of attempts it is a mistake.
"""

from __future__ import annotations

from typing import TypeGuard


def is_whole(value: object, *, at_least: float | None = None) -> TypeGuard[int]:
    """Return whether a value is a whole number.

    Args:
        value: as it was given.
        at_least: the least number that is accepted; None for any.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return at_least is None or value >= at_least
