"""What happens when a handler fails: tried again where it stands, then set aside.

Retries are Celery's own (`autoretry_for`, `Task.retry`), so they show as RETRY in Flower; the
transport puts each in the place of its message, where its sequence waits until it is due.
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

#: Never retried in place: no outcome of the handler, or none that time changes.
NOT_RETRIED = (
    Ignore, Reject, LeaseLost, StoreUnavailable, MessageError, NestedExecution, InsideEventLoop,
    *HOPELESS,
)  # fmt: skip

#: What a subscription's dead letter does to its sequence.
OnDeadLetter = Literal["block", "continue", "discard_after"]


@dataclass(frozen=True)
class Retrying:
    """How often, and when, a failing handler is tried again in place.

    Attributes:
        retry_on: the exceptions that are retried.
        give_up_on: of those, the ones that are not.
        max_retries: retries before the failure counts; None for no limit.
        retry_backoff: seconds before the first retry, doubled for each further one; True is 1.
        retry_backoff_max: the most seconds between two.
        retry_jitter: True to wait a random part of that time.
    """

    retry_on: tuple[type[BaseException], ...] = ()
    give_up_on: tuple[type[BaseException], ...] = ()
    max_retries: int | None = 3
    retry_backoff: bool | int = True
    retry_backoff_max: int = 600
    retry_jitter: bool = True

    def task_options(self) -> dict[str, Any]:
        """Return the options of the Celery task that retries so."""
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
    """What a subscription's dead letter does.

    Attributes:
        on_dead_letter: "block": later events of its aggregate wait until it is done or discarded;
            "continue": they don't; "discard_after": they wait until its time to live is over, and
            then it is deleted, with an error in the log.
        dead_letter_ttl_s: seconds for which it is tried again; None for `cqrs_dead_letter_ttl_s`.
    """

    on_dead_letter: OnDeadLetter = "block"
    dead_letter_ttl_s: int | None = None


def exceptions(option: str, given: Any, where: str) -> tuple[type[BaseException], ...]:
    """Return the exception classes of an option, given as one or several.

    Raises:
        RegistrationError: something else was given.
    """
    found = as_tuple(given)
    for one in found:
        if not (isinstance(one, type) and issubclass(one, BaseException)):
            raise RegistrationError(
                f"{where} sets {option} to {given!r}; expected exception classes"
            )
    return found


def as_tuple(given: Any) -> tuple[Any, ...]:
    """Return an option that is given as one or several, as several."""
    return tuple(given) if isinstance(given, Sequence) else (given,)


def check_refusals(retry_on: tuple[type[BaseException], ...], where: str) -> None:
    """Check that a command is not to be tried again for a refusal.

    Raises:
        RegistrationError: it is.
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
        RegistrationError: it is not, or it is less than the least.
    """
    if not is_whole(given, at_least=least):
        raise RegistrationError(
            f"{where} sets {option} to {given!r}; expected a whole number from {least}"
        )


def check_choice(option: str, given: Any, where: str, accepted: Sequence[Any]) -> None:
    """Check that an option is one of those accepted.

    Raises:
        RegistrationError: it is another.
    """
    if given not in accepted:
        raise RegistrationError(
            f"{where} sets {option} to {given!r}; expected {', '.join(map(repr, accepted))}"
        )
