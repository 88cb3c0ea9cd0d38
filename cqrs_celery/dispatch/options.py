"""Check the task options given to a decorator, and refuse those that have no effect."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import celery

from ..errors import RegistrationError
from ..messages.registry import where

#: Task options that a handler's task sets itself: other values would break its promises.
FIXED = frozenset({
    "abstract", "acks_late", "acks_on_failure", "acks_on_failure_or_timeout", "acks_on_timeout",
    "app", "base", "bind", "compression", "default_retry_delay", "expires", "name", "queue",
    "Request", "retry", "run", "serializer", "typing",
})  # fmt: skip

#: The place to set a refused option instead, for the error.
ELSEWHERE = {"queue": ": a command's queue is set by task_routes, a subscription's is its name"}

#: Celery's options that the decorators name differently.
NAMED_HERE = {"autoretry_for": "retry_on", "dont_autoretry_for": "give_up_on"}


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], *, decorator: Callable[..., Any]
) -> None:
    """Check a handler's task options.

    Args:
        function: the handler's function.
        options: the options given to the decorator, apart from its own.
        decorator: the decorator; its own options are suggested for a misspelt one.

    Raises:
        RegistrationError: Celery's tasks have no such option, or a handler's task sets it itself.
    """
    for option in options:
        if option in FIXED:
            raise RegistrationError(
                f"{where(function)} sets the task option {option!r}, which a handler's task keeps"
                f" for itself. Remove it{ELSEWHERE.get(option, '')}."
            )
        if option.startswith("_") or not hasattr(celery.Task, option):
            known = [name for name in dir(celery.Task) if not name.startswith("_")]
            own = [name for name in signature(decorator).parameters if name != "options"]
            close = difflib.get_close_matches(option, own, n=1) or difflib.get_close_matches(
                option, sorted(set(known) - FIXED), n=1
            )
            instead = NAMED_HERE.get(option) or (close[0] if close else "")
            raise RegistrationError(
                f"{where(function)} sets {option!r}, but a handler's task has no such option"
                + (f"; did you mean {instead!r}?" if instead else ".")
            )
