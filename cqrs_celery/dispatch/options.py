"""Check the task options given to a decorator: an option that does nothing is refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import celery

from ..errors import RegistrationError
from ..messages.registry import where

#: Task options that a handler's task keeps for itself: others would break what it promises.
FIXED = frozenset({
    "abstract", "acks_late", "acks_on_failure", "acks_on_failure_or_timeout", "acks_on_timeout",
    "app", "base", "bind", "compression", "default_retry_delay", "expires", "name", "queue",
    "Request", "retry", "run", "serializer", "typing",
})  # fmt: skip


#: The decorators' own options, which are Celery's only in part.
OWN = ("retry_on", "give_up_on", "max_retries", "retry_backoff", "retry_on_conflict", "lock")

#: Celery's options that have another name here.
NAMED_HERE = {"autoretry_for": "retry_on", "dont_autoretry_for": "give_up_on"}


def check_options(function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check a handler's task options.

    Raises:
        RegistrationError: Celery's tasks have no such option, or a handler's keeps it for itself.
    """
    for option in options:
        if option in FIXED:
            raise RegistrationError(
                f"{where(function)} sets the task option {option!r}, which a handler's task keeps"
                " for itself. Remove it."
            )
        if option.startswith("_") or not hasattr(celery.Task, option):
            known = [name for name in dir(celery.Task) if not name.startswith("_")]
            close = difflib.get_close_matches(option, sorted({*known, *OWN} - FIXED), n=1)
            instead = NAMED_HERE.get(option) or (close[0] if close else "")
            raise RegistrationError(
                f"{where(function)} sets {option!r}, but a handler's task has no such option"
                + (f"; did you mean {instead!r}?" if instead else ".")
            )
