"""The repetition of a handler after a conflict: how often, how soon, and under which lock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..errors import AggregateExists, DuplicateInstance, RegistrationError, StaleVersion
from ..messages.registry import where
from ..whole_numbers import is_whole

#: Conflicts that no repetition resolves: with a version that the caller chose, with an aggregate
#: that exists although the handler creates it unconditionally, and by a mistake in the program.
HOPELESS = (StaleVersion, AggregateExists, DuplicateInstance)

#: How often a handler is repeated after conflicts with other writers, by default.
RETRIES = 3

#: When a command's handler takes its aggregate's lock: before it is repeated after a conflict, or
#: before every run.
ON_CONFLICT, ALWAYS = "on_conflict", "always"

#: Seconds to wait for a lock by default: longer than the lock of a dead process lasts.
LOCK_WAIT_S = 15.0

#: The most seconds to wait before the first repetition. The wait is random; its limit doubles with
#: each repetition.
DELAY_S = 0.02

#: The most seconds to wait before any repetition.
LONGEST_DELAY_S = 1.0


@dataclass(frozen=True)
class OnConflict:
    """The options of a handler's decorator for conflicts.

    Attributes:
        retries: how often to repeat the handler with fresh state; 0 for never.
        lock: "on_conflict", "always", or None for never.
        lock_wait_s: the most seconds to wait for the lock.
        is_lock_asked_for: whether the decorator sets `lock`; if it does, locks must be available.
    """

    retries: int = RETRIES
    lock: str | None = None
    lock_wait_s: float = LOCK_WAIT_S
    is_lock_asked_for: bool = False


def delay_s(number: int) -> float:
    """Return the seconds to wait before a handler is repeated after a conflict.

    Args:
        number: how many conflicts there were before it.
    """
    return random.uniform(0, min(DELAY_S * 2 ** min(number, 16), LONGEST_DELAY_S))  # noqa: S311


class _Default:
    """The default of `lock`: on a conflict, if locks are available."""

    def __repr__(self) -> str:
        return repr(ON_CONFLICT)


#: The default of `lock` in `command_handler`.
IF_THERE_ARE_LOCKS: Any = _Default()


def command_conflicts(
    function: Callable[..., Any], command: type[Any], *, retries: Any, lock: Any, lock_wait_s: Any
) -> OnConflict:
    """Return the options of a command handler's decorator for conflicts.

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
        RegistrationError: it is not a whole number from 0.
    """
    if not is_whole(retries, at_least=0):
        raise RegistrationError(
            f"{where(function)} sets retry_on_conflict = {retries!r}; expected a whole number from"
            " 0, which is how often to repeat it"
        )
    return retries
