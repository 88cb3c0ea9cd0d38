"""Say what to do when another writer commits first: how often to repeat a handler, and how soon."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import RegistrationError
from ..messages.registry import where

#: How often a conflict with another writer repeats a handler whose decorator does not say.
RETRIES = 3

#: Seconds to wait at most before the first repetition; drawn at random, doubled each time.
DELAY_S = 0.02

#: Seconds to wait at most before any repetition.
LONGEST_DELAY_S = 1.0


@dataclass(frozen=True)
class OnConflict:
    """Be what a handler's decorator says of conflicts.

    Attributes:
        retries: how often to repeat the handler with fresh state; 0 for never.
    """

    retries: int = RETRIES


def delay_s(number: int) -> float:
    """Return the seconds to wait after a conflict.

    Args:
        number: how many conflicts there were before it.
    """
    return random.uniform(0, min(DELAY_S * 2 ** min(number, 16), LONGEST_DELAY_S))  # noqa: S311


def check_retries(function: Callable[..., Any], retries: Any) -> int:
    """Return the decorator's `retry_on_conflict`.

    Raises:
        RegistrationError: it is no whole number from 0.
    """
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise RegistrationError(
            f"{where(function)} sets retry_on_conflict = {retries!r}; expected a whole number from"
            " 0, which is how often to repeat it"
        )
    return retries
