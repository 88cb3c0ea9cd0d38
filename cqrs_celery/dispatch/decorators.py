"""Declare handlers and subscriptions.

A decorated function is usable before any application exists, as Celery's `@shared_task` is; every
CQRS application of the process gets its task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import RegistrationError
from ..messages.registry import where
from .conflicts import (
    IF_THERE_ARE_LOCKS,
    LOCK_WAIT_S,
    RETRIES,
    OnConflict,
    check_retries,
    command_conflicts,
)
from .definitions import Definition, definitions
from .handler import Handler
from .options import check_options
from .signature import injections

F = TypeVar("F", bound=Callable[..., Any])


def command_handler(
    command: type[Any],
    *,
    retry_on_conflict: int = RETRIES,
    lock: str | None = IF_THERE_ARE_LOCKS,
    lock_wait_s: float = LOCK_WAIT_S,
    **options: Any,
) -> Callable[[Callable[..., Any]], Handler]:
    """Declare a function to be a command's one handler, and its Celery task.

    The function gets the command; a parameter annotated with `Session` gets the unit of work, which
    is committed when the function returns; one with `Metadata` gets the trace. An exception is the
    command's outcome: nothing is committed.

    Args:
        command: the class.
        retry_on_conflict: how often to repeat the function at once, with fresh state, when another
            writer has committed first; 0 for never.
        lock: when to take the lock of the command's aggregate: "on_conflict", before the function
            is repeated; "always", before it runs; None, never. Without it, on a conflict, where
            there are locks.
        lock_wait_s: seconds to wait for the lock at most; then the command fails with LockTimeout.
        options: Celery's task options, as `rate_limit` or `time_limit`.

    Returns:
        A decorator. What it returns is called like the function, and has a task's `delay`,
        `apply_async`, `s`, `si`, and so on.

    Raises:
        RegistrationError: the class is no command, or an option would break what a handler's task
            promises.
        DuplicateRegistration: the command has a handler; both are named.
        HandlerSignatureError: a parameter's annotation does not fit.
    """
    _check("command", (command,))

    def declare(function: Callable[..., Any]) -> Handler:
        found = injections(function, "command", (command,))
        check_options(function, options)
        conflicts = command_conflicts(
            function, command, retries=retry_on_conflict, lock=lock, lock_wait_s=lock_wait_s
        )
        definition = Definition(
            "command", (command,), function, found, options=options, on_conflict=conflicts
        )
        definitions.add(definition)
        return Handler(definition)

    return declare


def query_handler(query: type[Any]) -> Callable[[F], F]:
    """Declare a function to be a query's one handler; it runs in the process that asks.

    Args:
        query: the class.

    Returns:
        A decorator that returns the function as it is.

    Raises:
        RegistrationError: the class is no query.
        DuplicateRegistration: the query has a handler; both are named.
        HandlerSignatureError: a parameter's annotation does not fit.
    """
    _check("query", (query,))

    def declare(function: F) -> F:
        found = injections(function, "query", (query,))
        definitions.add(Definition("query", (query,), function, found))
        return function

    return declare


def subscribes(
    *events: type[Any], subscription: str = "", retry_on_conflict: int = RETRIES, **options: Any
) -> Callable[[Callable[..., Any]], Handler]:
    """Declare a function to be given every event of some types, in each aggregate's order.

    Functions of one subscription share a queue, so they see an aggregate's events in version
    order across types. The function gets the event; a parameter annotated with `RecordedEvent` gets
    the facts of its recording, one with `Session` a unit of work that is committed once on return,
    one with `Metadata` the trace. An event may arrive again after a crash; its version tells.

    Args:
        events: the classes; a base class means every event below it.
        subscription: its name; without it, the function is a subscription of its own, under its
            name. Without a dot, the application is put in front.
        retry_on_conflict: how often to repeat the function at once, with fresh state, when another
            writer has committed first; 0 for never.
        options: Celery's task options.

    Returns:
        A decorator. What it returns is called like the function, and has a task's attributes.

    Raises:
        RegistrationError: there is no class, one is no event, or an option would break what a
            handler's task promises.
        DuplicateRegistration: a function of the subscription takes the event; both are named.
        HandlerSignatureError: a parameter's annotation does not fit.
    """
    _check("event", events)

    def declare(function: Callable[..., Any]) -> Handler:
        found = injections(function, "event", events)
        check_options(function, options)
        conflicts = OnConflict(check_retries(function, retry_on_conflict))
        definition = Definition(
            "event", events, function, found, subscription, options, on_conflict=conflicts
        )
        definitions.add(definition)
        return Handler(definition)

    return declare


def _check(kind: str, classes: tuple[Any, ...]) -> None:
    if not classes:
        raise RegistrationError("subscribes() names no event; expected at least one class")
    for cls in classes:
        if getattr(cls, "__kind__", None) != kind:
            name = where(cls) if isinstance(cls, type) else repr(cls)
            raise RegistrationError(
                f"{name} is no {kind}; expected a class below cqrs_celery.{kind.capitalize()}"
            )
