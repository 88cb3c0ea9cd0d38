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
    "Request", "run", "serializer", "typing",
})  # fmt: skip


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
            close = difflib.get_close_matches(option, known, n=1)
            raise RegistrationError(
                f"{where(function)} sets {option!r}, but Celery's tasks have no such option"
                + (f"; did you mean {close[0]!r}?" if close else ".")
            )
