"""How a handler that lost a race is repeated: how often, how soon, and under a lock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import AggregateExists, DuplicateInstance, RegistrationError, StaleVersion
from ..messages.registry import where
from ..whole_numbers import is_whole

#: Conflicts that are there however often the handler runs: a version that the caller chose, what is
#: made without a look whether it is there, and a mistake of the program.
HOPELESS = (StaleVersion, AggregateExists, DuplicateInstance)

#: How often a conflict with another writer repeats a handler whose decorator does not say.
RETRIES = 3

#: When a command's handler takes its aggregate's lock: before it runs again after a conflict, or
#: before it runs at all.
ON_CONFLICT, ALWAYS = "on_conflict", "always"

#: Seconds to wait for a lock, if the decorator does not say: longer than a dead holder's lives.
LOCK_WAIT_S = 15.0

#: Seconds to wait at most before the first repetition; drawn at random, doubled each time.
DELAY_S = 0.02

#: Seconds to wait at most before any repetition.
LONGEST_DELAY_S = 1.0


@dataclass(frozen=True)
class OnConflict:
    """The options of a handler's decorator for conflicts.

    Attributes:
        retries: how often to repeat the handler with fresh state; 0 for never.
        lock: "on_conflict", "always", or None for never.
        lock_wait_s: seconds to wait for the lock at most.
        is_lock_asked_for: whether the decorator names it, so that there must be locks.
    """

    retries: int = RETRIES
    lock: str | None = None
    lock_wait_s: float = LOCK_WAIT_S
    is_lock_asked_for: bool = False


def delay_s(number: int) -> float:
    """Return the seconds to wait after a conflict.

    Args:
        number: how many conflicts there were before it.
    """
    return random.uniform(0, min(DELAY_S * 2 ** min(number, 16), LONGEST_DELAY_S))  # noqa: S311


class _Default:
    """Stand for a lock that the decorator does not name: on a conflict, where there are locks."""

    def __repr__(self) -> str:
        return repr(ON_CONFLICT)


#: What `command_handler` has for `lock` if nothing else is said.
IF_THERE_ARE_LOCKS: Any = _Default()


def command_conflicts(
    function: Callable[..., Any], command: type[Any], *, retries: Any, lock: Any, lock_wait_s: Any
) -> OnConflict:
    """Return what a command handler's decorator says of conflicts.

    Raises:
        RegistrationError: a value is not accepted, or the command has no aggregate to lock.
    """
    is_asked_for = lock is not IF_THERE_ARE_LOCKS
    if is_asked_for and lock not in (ON_CONFLICT, ALWAYS, None):
        raise RegistrationError(
            f"{where(function)} sets lock = {lock!r}; expected {ON_CONFLICT!r}, {ALWAYS!r} or None"
        )
    if is_asked_for and lock and command.__key__ is None:
        raise RegistrationError(
            f"{where(function)} sets lock = {lock!r}, but {command.__qualname__} is for no"
            " aggregate that could be locked. Name it with the class:"
            " aggregate=InventoryItem, key='id'"
        )
    is_number = isinstance(lock_wait_s, (int, float)) and not isinstance(lock_wait_s, bool)
    if not is_number or not 0 <= lock_wait_s < float("inf"):
        raise RegistrationError(
            f"{where(function)} sets lock_wait_s = {lock_wait_s!r}; expected seconds from 0"
        )
    return OnConflict(
        check_retries(function, retries),
        lock if is_asked_for else ON_CONFLICT,
        lock_wait_s,
        is_asked_for,
    )


def check_retries(function: Callable[..., Any], retries: Any) -> int:
    """Return the decorator's `retry_on_conflict`.

    Raises:
        RegistrationError: it is no whole number from 0.
    """
    if not is_whole(retries, at_least=0):
        raise RegistrationError(
            f"{where(function)} sets retry_on_conflict = {retries!r}; expected a whole number from"
            " 0, which is how often to repeat it"
        )
    return retries
