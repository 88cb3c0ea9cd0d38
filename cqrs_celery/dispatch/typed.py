"""What type checkers see of the decorators and of `publish`; nothing here runs.

A decorator is called twice: `command_handler(CheckInItems)` knows the message class, and what that
returns knows the function. The classes say what fits: the function takes the message, and returns
what the message's class declares as its result. In them, `self` is annotated with the kind of
message, from which a checker reads the result's type.
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
    """A message that is no event, command or query."""

    def __publishable__(self) -> Literal[True]: ...


class Unstated:
    """The result of no query: only one that states no result passes for a query of this."""


class DeclaresCommand(Generic[M_co]):
    """The decorator of a command's handler."""

    def __call__(
        self: DeclaresCommand[Command[R]],
        function: Callable[Concatenate[M_co, P], R | Coroutine[Any, Any, R]],
    ) -> Handler[M_co, R]:
        """Declare the function."""
        raise NotImplementedError


class DeclaresQuery(Generic[M_co]):
    """The decorator of a query's handler; the function comes back as it is."""

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
