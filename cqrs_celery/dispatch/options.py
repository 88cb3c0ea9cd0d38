"""Check the task options given to a decorator: an option that does nothing is refused."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from inspect import signature
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

#: Where an option that is refused is set instead, for the error.
ELSEWHERE = {"queue": ": a command's queue is set by task_routes, a subscription's is its name"}

#: Celery's options that have another name here.
NAMED_HERE = {"autoretry_for": "retry_on", "dont_autoretry_for": "give_up_on"}


def check_options(
    function: Callable[..., Any], options: Mapping[str, Any], *, decorator: Callable[..., Any]
) -> None:
    """Check a handler's task options.

    Args:
        function: the handler's.
        options: what the decorator was given besides its own options.
        decorator: that decorator; its own options are suggested for one that is misspelt.

    Raises:
        RegistrationError: Celery's tasks have no such option, or a handler's keeps it for itself.
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
