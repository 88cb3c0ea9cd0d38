"""Options for a handler that fails: retries in place, then a dead letter.

Retries are Celery's own (`autoretry_for`, `Task.retry`), so Flower shows them as RETRY. The
transport puts each retry in the place of its message, whose sequence waits until the retry is due.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from celery.exceptions import Ignore, Reject

from ..errors import (
    InsideEventLoop,
    LeaseLost,
    MessageError,
    NestedExecution,
    RegistrationError,
    StoreUnavailable,
)
from ..refusal import Refusal
from ..whole_numbers import is_whole
from .conflicts import HOPELESS

#: Never retried in place: not an outcome of the handler, or one that does not change with time.
NOT_RETRIED = (
    Ignore, Reject, LeaseLost, StoreUnavailable, MessageError, NestedExecution, InsideEventLoop,
    *HOPELESS,
)  # fmt: skip

#: The effect of a subscription's dead letter on its sequence.
OnDeadLetter = Literal["block", "continue", "discard_after"]


@dataclass(frozen=True)
class Retrying:
    """The options for retries of a failing handler in place.

    Attributes:
        retry_on: the exceptions for which the handler is retried.
        give_up_on: those of them for which it is not retried.
        max_retries: the most retries before the failure is final; None for no limit.
        retry_backoff: seconds before the first retry, doubled for each further one; True is 1.
        retry_backoff_max: the most seconds between two retries.
        retry_jitter: True to wait a random part of that time.
    """

    retry_on: tuple[type[BaseException], ...] = ()
    give_up_on: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    retry_backoff: bool | int = True
    retry_backoff_max: int = 600
    retry_jitter: bool = True

    def task_options(self) -> dict[str, Any]:
        """Return the Celery task options for these retries."""
        return {
            "autoretry_for": self.retry_on,
            "dont_autoretry_for": (*NOT_RETRIED, *self.give_up_on),
            "max_retries": self.max_retries,
            "retry_backoff": self.retry_backoff,
            "retry_backoff_max": self.retry_backoff_max,
            "retry_jitter": self.retry_jitter,
        }


@dataclass(frozen=True)
class Lettering:
    """The options for a subscription's dead letters.

    Attributes:
        on_dead_letter: "block": later events of the aggregate wait until the dead letter is handled
            or discarded; "continue": they don't wait; "discard_after": they wait until its time to
            live is over, and then it is deleted, with an error in the log.
        dead_letter_ttl_s: seconds to try a dead letter again; None for `cqrs_dead_letter_ttl_s`.
    """

    on_dead_letter: OnDeadLetter = "block"
    dead_letter_ttl_s: int | None = None


def exceptions(option: str, given: Any, where: str) -> tuple[type[BaseException], ...]:
    """Return an option's exception classes, which may be given as one class or several.

    Raises:
        RegistrationError: a value is not an exception class.
    """
    found = as_tuple(given)
    for one in found:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise RegistrationError(
                f"{where} sets {option} to {given!r}; expected exception classes"
            )
    return found


def as_tuple(given: Any) -> tuple[Any, ...]:
    """Return an option's values as a tuple, whether one or several are given."""
    return tuple(given) if isinstance(given, Sequence) else (given,)


def check_refusals(retry_on: tuple[type[BaseException], ...], where: str) -> None:
    """Check that a command's `retry_on` names no refusal.

    Raises:
        RegistrationError: it names a class below `Refusal`.
    """
    for one in retry_on:
        if issubclass(one, Refusal):
            raise RegistrationError(
                f"{where} sets retry_on to {one.__qualname__}, which is a Refusal, and a refusal is"
                " never tried again. If waiting helps, derive it from Exception instead."
            )


def check_number(option: str, given: Any, where: str, *, least: int = 0) -> None:
    """Check that an option is a whole number.

    Raises:
        RegistrationError: it is not a whole number, or it is below `least`.
    """
    if not is_whole(given, at_least=least):
        raise RegistrationError(
            f"{where} sets {option} to {given!r}; expected a whole number from {least}"
        )


def check_choice(option: str, given: Any, where: str, accepted: Sequence[Any]) -> None:
    """Check that an option has an accepted value.

    Raises:
        RegistrationError: it has another value.
    """
    if given not in accepted:
        raise RegistrationError(
            f"{where} sets {option} to {given!r}; expected {', '.join(map(repr, accepted))}"
        )
