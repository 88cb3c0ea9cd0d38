"""The types of the decorators and of `publish`, for type checkers; nothing here runs.

A decorator is called twice: first with the message class, as `command_handler(CheckInItems)`, and
then the result of that call with the function. These classes are the types of that result. They
require a function that takes the message, and returns the result that the message's class declares.
In them, `self` is annotated with the kind of message, from which a checker reads the result's type.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Protocol, TypeVar, overload

from ..messages.message import Command, Message, Query
from ..messages.results import R
from ..store.events import RecordedEvent
from .handler import Handler

P = ParamSpec("P")
T = TypeVar("T")
M_co = TypeVar("M_co", bound=Message, covariant=True)


class Publishable(Protocol):
    """A message that is not an event, command or query."""

    def __publishable__(self) -> Literal[True]: ...


class Unstated:
    """A type that is no query's result, so that it matches only queries that declare none."""


class DeclaresCommand(Generic[M_co]):
    """The decorator of a command's handler."""

    def __call__(
        self: DeclaresCommand[Command[R]],
        function: Callable[Concatenate[M_co, P], R | Coroutine[Any, Any, R]],
    ) -> Handler[M_co, R]:
        """Declare the function."""
        raise NotImplementedError


class DeclaresQuery(Generic[M_co]):
    """The decorator of a query's handler, which returns the function as it is."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # where both fit, the first is meant
        self: DeclaresQuery[Query[Unstated]], function: Callable[Concatenate[M_co, P], T]
    ) -> Callable[Concatenate[M_co, P], T]: ...

    @overload
    def __call__(
        self: DeclaresQuery[Query[R]], function: Callable[Concatenate[M_co, P], R]
    ) -> Callable[Concatenate[M_co, P], R]: ...

    @overload
    def __call__(
        self: DeclaresQuery[Query[R]],
        function: Callable[Concatenate[M_co, P], Coroutine[Any, Any, R]],
    ) -> Callable[Concatenate[M_co, P], Coroutine[Any, Any, R]]: ...

    def __call__(self: Any, function: Any) -> Any:
        """Declare the function."""
        raise NotImplementedError


class Subscribes(Generic[M_co]):
    """The decorator of a subscription's function, which takes one event or message."""

    def __call__(self, function: Callable[Concatenate[M_co, P], Any]) -> Handler[Any, None]:
        """Declare the function."""
        raise NotImplementedError


class SubscribesBatch(Protocol):
    """The decorator of a subscription's function that takes many events."""

    def __call__(
        self, function: Callable[Concatenate[list[RecordedEvent[Any]], P], Any]
    ) -> Handler[Any, None]:
        """Declare the function."""
