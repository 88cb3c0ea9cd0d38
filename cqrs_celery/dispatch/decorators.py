"""Declare handlers and subscriptions.

A decorated function is usable before any application exists, like one with Celery's
`@shared_task`; every CQRS application of the process gets its task.

`command_handler` and `subscribes` are long functions because each is one declaration. Most lines
are the signature and the docstring, so that a user's editor shows every option. The bodies check
the options and make a `Definition`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, overload

from ..dispatch import consuming  # noqa: F401  connects itself to a worker's start
from ..errors import RegistrationError
from ..messages.message import Event, Message
from ..messages.registry import where
from ..refusal import Refusal
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
from .results import check_returned
from .retrying import (
    Lettering,
    OnDeadLetter,
    Retrying,
    as_tuple,
    check_choice,
    check_number,
    check_refusals,
    exceptions,
)
from .signature import read_parameters
from .typed import DeclaresCommand, DeclaresQuery, Subscribes, SubscribesBatch

M = TypeVar("M", bound=Message)
E1 = TypeVar("E1", bound=Message)
E2 = TypeVar("E2", bound=Message)
E3 = TypeVar("E3", bound=Message)
E4 = TypeVar("E4", bound=Message)

Exceptions = type[BaseException] | tuple[type[BaseException], ...]


def command_handler(
    command: type[M],
    *,
    retry_on: Exceptions = (),
    give_up_on: Exceptions = (),
    max_retries: int = 3,
    retry_backoff: bool | int = True,
    retry_backoff_max: int = 600,
    retry_jitter: bool = True,
    retry_on_conflict: int = RETRIES,
    lock: str | None = IF_THERE_ARE_LOCKS,
    lock_wait_s: float = LOCK_WAIT_S,
    **options: Any,
) -> DeclaresCommand[M]:
    """Declare a function to be a command's one handler, and its Celery task.

    The function gets the command; a parameter annotated with `Session` gets the unit of work, which
    is committed when the function returns; one with `Metadata` gets the trace; one with a type that
    the application provides (`CQRS.provide`) gets a value of it, which is closed after the commit.
    If the function raises, nothing is committed, and the exception is the command's outcome. A
    `Refusal` is logged in one line and never retried.

    Args:
        command: the class.
        retry_on: the exceptions for which the command is retried; by default none.
        give_up_on: those of them for which it is not retried.
        max_retries: the most retries; after them, the exception is the command's outcome.
        retry_backoff: seconds before the first retry, doubled for each further one; True is 1.
        retry_backoff_max: the most seconds between two retries.
        retry_jitter: True to wait a random part of that time.
        retry_on_conflict: how often to repeat the function at once, with fresh state, if another
            writer has committed first; 0 for never.
        lock: when to take the lock of the command's aggregate: "on_conflict", before the function
            is repeated; "always", before it runs; None, never. By default, on a conflict if locks
            are available.
        lock_wait_s: the most seconds to wait for it; then the command fails with LockTimeout.
        options: Celery's task options, such as `rate_limit` or `time_limit`.

    Returns:
        A decorator. It returns an object that is called like the function, and has a task's
        `delay`, `apply_async`, `s`, `si`, and so on.

    Raises:
        RegistrationError: the class is not a command, or an option would break what a handler's
            task promises.
        DuplicateRegistration: the command has another handler; the text names both.
        HandlerSignatureError: a parameter's annotation does not fit, or JSON has no form for the
            type in the function's return annotation.
    """
    _check("command", (command,))

    def declare(function: Callable[..., Any]) -> Any:
        found = read_parameters(function, "command", (command,))
        check_returned(function)
        check_options(function, options, decorator=command_handler)
        conflicts = command_conflicts(
            function, command, retries=retry_on_conflict, lock=lock, lock_wait_s=lock_wait_s
        )
        retrying = _retrying(
            function, retry_on, (Refusal, *as_tuple(give_up_on)), max_retries, retry_backoff,
            retry_backoff_max, retry_jitter,
        )  # fmt: skip
        check_refusals(retrying.retry_on, where(function))
        definition = Definition(
            "command",
            (command,),
            function,
            found.injections,
            options=options,
            on_conflict=conflicts,
            retrying=retrying,
            asked=found.asked,
        )
        definitions.add(definition)
        return Handler(definition)

    return cast(DeclaresCommand[M], declare)


def query_handler(query: type[M]) -> DeclaresQuery[M]:
    """Declare a function to be a query's one handler; it runs in the process of the caller.

    A parameter annotated with `Session` gets a read-only session; one with a type that the
    application provides (`CQRS.provide`) gets a value of it, which is closed at the end.

    Args:
        query: the class.

    Returns:
        A decorator that returns the function as it is.

    Raises:
        RegistrationError: the class is not a query.
        DuplicateRegistration: the query has another handler; the text names both.
        HandlerSignatureError: a parameter's annotation does not fit.
    """
    _check("query", (query,))

    def declare(function: Any) -> Any:
        found = read_parameters(function, "query", (query,))
        definitions.add(
            Definition("query", (query,), function, found.injections, asked=found.asked)
        )
        return function

    return cast(DeclaresQuery[M], declare)


# Overloads, since a type checker would join the classes of several events into their common base.
@overload
def subscribes(
    *events: type[Event],
    subscription: str = ...,
    ordered: bool | Literal["subscription"] = ...,
    retry_on: Exceptions = ...,
    give_up_on: Exceptions = ...,
    max_retries: int = ...,
    retry_backoff: bool | int = ...,
    retry_backoff_max: int = ...,
    retry_jitter: bool = ...,
    retry_on_conflict: int = ...,
    on_dead_letter: OnDeadLetter = ...,
    dead_letter_ttl_s: int | None = ...,
    batch: int,
    **options: Any,
) -> SubscribesBatch: ...
@overload
def subscribes(
    one: type[E1],
    two: type[E2] = ...,
    three: type[E3] = ...,
    four: type[E4] = ...,
    /,
    *,
    subscription: str = ...,
    ordered: bool | Literal["subscription"] = ...,
    retry_on: Exceptions = ...,
    give_up_on: Exceptions = ...,
    max_retries: int = ...,
    retry_backoff: bool | int = ...,
    retry_backoff_max: int = ...,
    retry_jitter: bool = ...,
    retry_on_conflict: int = ...,
    on_dead_letter: OnDeadLetter = ...,
    dead_letter_ttl_s: int | None = ...,
    **options: Any,
) -> Subscribes[E1 | E2 | E3 | E4]: ...
@overload
def subscribes(
    *events: type[Any],
    subscription: str = ...,
    ordered: bool | Literal["subscription"] = ...,
    retry_on: Exceptions = ...,
    give_up_on: Exceptions = ...,
    max_retries: int = ...,
    retry_backoff: bool | int = ...,
    retry_backoff_max: int = ...,
    retry_jitter: bool = ...,
    retry_on_conflict: int = ...,
    on_dead_letter: OnDeadLetter = ...,
    dead_letter_ttl_s: int | None = ...,
    **options: Any,
) -> Subscribes[Any]: ...
def subscribes(
    *events: type[Any],
    subscription: str = "",
    ordered: bool | Literal["subscription"] = True,
    retry_on: Exceptions = (Exception,),
    give_up_on: Exceptions = (),
    max_retries: int = 3,
    retry_backoff: bool | int = True,
    retry_backoff_max: int = 600,
    retry_jitter: bool = True,
    retry_on_conflict: int = RETRIES,
    on_dead_letter: OnDeadLetter = "block",
    dead_letter_ttl_s: int | None = None,
    batch: int = 0,
    **options: Any,
) -> Any:
    """Subscribe a function to all events of some types, in each aggregate's order.

    Functions of one subscription share a queue, so they see an aggregate's events in version
    order across types. The function gets the event; a parameter annotated with `RecordedEvent` gets
    the facts of its recording, one with `Session` a unit of work that is committed once on return,
    one with `Metadata` the trace, one with a type that the application provides (`CQRS.provide`) a
    value of it, which is closed after the commit. An event may be delivered again after a crash;
    its version shows that. A message that is published has no `RecordedEvent`.

    If the function raises, the event is retried after growing delays. Then it is a dead letter,
    which workers try again for a week. Later events of the aggregate wait meanwhile, in order.

    Args:
        events: the classes, of events or of messages that are published; a base class stands for
            all classes below it.
        subscription: the subscription's name; by default, the function is a subscription of its own
            and gives it its name. A name without a dot gets the application's name in front.
        ordered: True: each aggregate's events in version order, one at a time; "subscription": all
            events of the subscription in the order of their commits, one at a time; False: several
            at a time, in no particular order.
        retry_on: the exceptions for which an event is retried before it becomes a dead letter.
        give_up_on: those of them for which it becomes a dead letter at once.
        max_retries: the most retries.
        retry_backoff: seconds before the first retry, doubled for each further one; True is 1.
        retry_backoff_max: the most seconds between two retries.
        retry_jitter: True to wait a random part of that time.
        on_dead_letter: "block": later events of the aggregate wait until the dead letter is handled
            or discarded; "continue": they don't wait; "discard_after": they wait until its time to
            live is over, and then it is deleted, with an error in the log.
        dead_letter_ttl_s: seconds to try a dead letter again; None for `cqrs_dead_letter_ttl_s`.
        batch: the most events that the function takes at once, from 2: as a list of
            `RecordedEvent`, those of an aggregate in version order. 0: one, as an event. A function
            that takes a batch has no `Session`, `Metadata` or `RecordedEvent` parameter.
        retry_on_conflict: how often to repeat the function at once, with fresh state, if another
            writer has committed first; 0 for never.
        options: Celery's task options.

    Returns:
        A decorator. It returns an object called like the function, with a task's attributes.

    Raises:
        RegistrationError: there is no class, one is neither event nor message, an option has a
            value that is not accepted or would break what a handler's task promises, or another
            function of the subscription differs in its order or its treatment of dead letters.
        DuplicateRegistration: another function of the subscription takes the event; the text
            names both.
        HandlerSignatureError: a parameter's annotation does not fit.
    """
    _check("event", events, "message")
    # A published message was never recorded, so it has no RecordedEvent.
    kind = "message" if any(event.__kind__ == "message" for event in events) else "event"

    def declare(function: Callable[..., Any]) -> Handler[Any, None]:
        if batch and kind == "message":
            raise RegistrationError(
                f"{where(function)} sets batch, which is for events alone: messages that are"
                " published one by one come one by one. Remove it."
            )
        found = read_parameters(function, "batch" if batch else kind, events)
        check_options(function, options, decorator=subscribes)
        conflicts = OnConflict(check_retries(function, retry_on_conflict))
        retrying = _retrying(
            function, retry_on, give_up_on, max_retries, retry_backoff, retry_backoff_max,
            retry_jitter,
        )  # fmt: skip
        here = where(function)
        check_choice("ordered", ordered, here, (True, False, "subscription"))
        accepted = ("block", "continue", "discard_after")
        check_choice("on_dead_letter", on_dead_letter, here, accepted)
        if dead_letter_ttl_s is not None:
            check_number("dead_letter_ttl_s", dead_letter_ttl_s, here, least=1)
        if batch:
            check_number("batch", batch, here, least=2)
        definition = Definition(
            "event", events, function, found.injections, subscription, options,
            on_conflict=conflicts, retrying=retrying,
            ordered=ordered, lettering=Lettering(on_dead_letter, dead_letter_ttl_s),
            batch=batch, asked=found.asked,
        )  # fmt: skip
        definitions.add(definition)
        return Handler(definition)

    return declare


#: The decorator for each kind of message.
_DECORATORS = {"command": "command_handler", "query": "query_handler", "event": "subscribes"}


def _check(kind: str, classes: tuple[Any, ...], *others: str) -> None:
    if not classes:
        raise RegistrationError("subscribes() names no event; expected at least one class")
    for cls in classes:
        if getattr(cls, "__kind__", None) not in (kind, *others):
            is_function = inspect.isfunction(cls)
            name = where(cls) if isinstance(cls, type) or is_function else repr(cls)
            hint = f". Write @{_DECORATORS[kind]}(…) with the class" if is_function else ""
            raise RegistrationError(
                f"{name} is no {kind}; expected a class below cqrs_celery.{kind.capitalize()}{hint}"
            )


def _retrying(
    function: Callable[..., Any],
    retry_on: Exceptions,
    give_up_on: Exceptions,
    max_retries: int,
    backoff: bool | int,
    backoff_max: int,
    jitter: bool,
) -> Retrying:
    here = where(function)
    check_number("max_retries", max_retries, here)
    check_number("retry_backoff", int(backoff) if backoff is True else backoff, here, least=1)
    check_number("retry_backoff_max", backoff_max, here, least=1)
    check_choice("retry_jitter", jitter, here, (True, False))
    return Retrying(
        exceptions("retry_on", retry_on, here),
        exceptions("give_up_on", give_up_on, here),
        max_retries,
        backoff,
        backoff_max,
        jitter,
    )
