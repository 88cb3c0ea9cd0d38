"""Wait for a condition with a deadline: the only place in the tests that may sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

#: Seconds between two looks at a condition.
POLL_INTERVAL_S = 0.02


class DeadlineMissed(AssertionError):
    """What a test waited for did not come true in time."""


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = 10.0,
    message: str | Callable[[], str] = "the condition to come true",
) -> T:
    """Return the first true value that a condition gives, or fail at the deadline.

    The condition is asked at least once, and once more at the deadline itself.

    Args:
        condition: asked again and again; an exception of its own ends the wait.
        timeout_s: seconds to wait.
        message: what is waited for; a function is called only when the deadline is missed.

    Returns:
        What the condition gave.

    Raises:
        DeadlineMissed: the condition was still false at the deadline.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        is_last = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if is_last:
            text = message if isinstance(message, str) else message()
            raise DeadlineMissed(f"waited {timeout_s:g} s for {text}")
        time.sleep(POLL_INTERVAL_S)
