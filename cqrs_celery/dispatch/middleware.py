"""Wrap every handler in middleware: logging, timing, validation, or the application's own.

    @contextmanager
    def in_tenant(call: Call) -> Iterator[None]:
        with tenant_of(call.message):
            yield

    cqrs = CQRS(app, middleware=[log_calls, in_tenant])

A middleware is a function that takes a call and returns a context manager. The first one is the
outermost: it is entered first and left last. The same middleware serves sync and async handlers, in
workers and in `execute` and `query`, so it must not await. It wraps the whole handling of a
message: the lookup of an earlier commit, locks, repetitions after conflicts, and the commit.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from ..errors import MalformedMessage, RegistrationError
from ..messages.metadata import NO_METADATA, Metadata
from ..messages.registry import where
from ..refusal import Refusal
from ..store.events import RecordedEvent

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Call:
    """One call of a handler, as middleware sees it.

    Attributes:
        kind: "command", "query", "event", or "message" for one that is published.
        message: the message; a list of recorded events for a function that takes a batch.
        handler: the function's module and name.
        metadata: the metadata of what the handler records and sends; empty for a query.
        recorded: the facts of the event's recording, for a function that takes one event.
        result: None until the handler has returned and its changes are committed; then the
            `CommandResult`, or a query's answer.
    """

    kind: str
    message: Any
    handler: str
    metadata: Metadata = NO_METADATA
    recorded: RecordedEvent[Any] | None = None
    result: Any = None

    @property
    def name(self) -> str:
        """The message's registered name; for a batch, the name of its first event."""
        message = self.message
        if isinstance(message, list):
            message = message[0].event
        return str(message.__registered__.name)


#: A function that returns the context manager of a call.
Middleware = Callable[[Call], AbstractContextManager[Any]]


def checked(middleware: Iterable[Middleware]) -> tuple[Middleware, ...]:
    """Check middleware, and return it in its order.

    Raises:
        RegistrationError: an item is not a middleware.
    """
    found = tuple(middleware)
    given: tuple[Any, ...] = found
    for one in given:
        is_async = inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        if is_async or not callable(one):
            raise RegistrationError(
                f"{where(one) if callable(one) else repr(one)} is no middleware"
                f"{': it is async' if is_async else ''}; expected a function that takes a Call and"
                " returns a context manager, the same for sync and async handlers"
            )
    return found


@contextmanager
def around(middleware: tuple[Middleware, ...], call: Call) -> Iterator[Call]:
    """Enter the middleware in its order, and leave it in the reverse one.

    Raises:
        Exception: the exception that was raised inside, even if a middleware suppresses it: no
            middleware turns a failure into a success.
    """
    failure: BaseException | None = None
    with ExitStack() as stack:
        try:
            for one in middleware:
                stack.enter_context(one(call))
            yield call
        except BaseException as error:
            failure = error
            raise
    if failure is not None:
        raise failure


@contextmanager
def log_calls(call: Call) -> Iterator[None]:
    """Log every call of a handler: its beginning (debug), its end (info) or its failure (warning).

    A `Refusal` by a command's or query's handler is not a failure, and is logged at info.

    The fields are `kind, message_name, handler, correlation_id`, and at the end `duration_ms`.
    """
    extra: dict[str, Any] = {
        "kind": call.kind,
        "message_name": call.name,
        "handler": call.handler,
        "correlation_id": call.metadata.correlation_id,
    }
    logger.debug("handler %s of %s begins", call.handler, call.name, extra=extra)
    began = time.perf_counter()
    try:
        yield
    except Exception as error:
        extra |= {"duration_ms": _ms_since(began), "error": f"{type(error).__name__}: {error}"}
        if isinstance(error, Refusal) and call.kind in ("command", "query"):
            level, ended = logging.INFO, "refused"
        else:
            level, ended = logging.WARNING, "failed"
        logger.log(
            level,
            "handler %s of %s %s after %s ms: %s",
            call.handler,
            call.name,
            ended,
            extra["duration_ms"],
            extra["error"],
            extra=extra,
        )
        raise
    extra["duration_ms"] = _ms_since(began)
    logger.info(
        "handler %s of %s done in %s ms", call.handler, call.name, extra["duration_ms"], extra=extra
    )


def time_calls(observe: Callable[[Call, float], None]) -> Middleware:
    """Return a middleware that reports the duration of each call, whether it failed or not.

    Args:
        observe: called with the call and its seconds, for instance to observe a metric.
    """

    @contextmanager
    def timing(call: Call) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            observe(call, time.perf_counter() - began)

    return timing


@contextmanager
def validate_fields(call: Call) -> Iterator[None]:
    """Check the types and limits of a command's or query's fields before its handler runs.

    A message from a queue was checked when it was decoded. This middleware also checks those that
    are passed to `execute` and `query`, since msgspec does not check an object when it is made.

    Raises:
        MalformedMessage: a field does not fit; the text says which.
    """
    if call.kind in ("command", "query"):
        message = call.message
        try:
            plain = msgspec.to_builtins(message)
            msgspec.convert(plain, type(message), builtin_types=())
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            version = message.__registered__.version
            raise MalformedMessage(
                f"the {call.kind} {call.name!r}, version {version}, has a field that does not fit"
                f" its type: {error}",
                name=call.name,
                version=version,
            ) from error
    yield


def _ms_since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
