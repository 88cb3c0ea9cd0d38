"""Factories of provided values: functions, classes, generators, context managers; or async ones.

How the value is obtained from a factory is decided once, when it is provided, by its kind and by
its return annotation. What a plain function returns is given as it is, even if it is a context
manager: all handlings may share it.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Generator,
    Iterator,
    Mapping,
)
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ..errors import RegistrationError
from ..messages.metadata import Metadata
from ..messages.registry import where
from ..session.session import Session
from .asking import Asked, hints_of, name_of, parameters_of, why_not, without_none


class Mode(Enum):
    """How the value is obtained from what a factory returns."""

    #: It is the value.
    VALUE = auto()
    #: It is awaited.
    AWAIT = auto()
    #: It is entered, and left after the handling.
    ENTER = auto()
    #: It is entered and left asynchronously.
    ENTER_ASYNC = auto()


#: The mode of a factory, by the class of its return annotation.
_RETURNED: Mapping[Any, Mode] = {
    AbstractContextManager: Mode.ENTER,
    AbstractAsyncContextManager: Mode.ENTER_ASYNC,
    Iterator: Mode.ENTER,
    Generator: Mode.ENTER,
    AsyncIterator: Mode.ENTER_ASYNC,
    AsyncGenerator: Mode.ENTER_ASYNC,
    Awaitable: Mode.AWAIT,
    Coroutine: Mode.AWAIT,
}


@dataclass(frozen=True)
class Factory:
    """A function that makes the values of one provided type.

    Attributes:
        key: the type.
        function: makes a value.
        mode: how the value is obtained from what the function returns.
        asks: the function's parameters, each with what it asks for.
    """

    key: Any
    function: Callable[..., Any]
    mode: Mode = Mode.VALUE
    asks: Mapping[str, Asked] = field(default_factory=dict)

    @property
    def is_async(self) -> bool:
        """Whether its value must be awaited."""
        return self.mode in (Mode.AWAIT, Mode.ENTER_ASYNC)

    @property
    def place(self) -> str:
        """Where its function is defined, for errors."""
        return place_of(self.function)

    @classmethod
    def of(cls, key: Any, function: Callable[..., Any]) -> Factory:
        """Return the factory that a function, a class or another callable object is.

        Raises:
            RegistrationError: it can't be called, or one of its parameters can't be given anything.
        """
        if not callable(function):
            raise RegistrationError(
                f"{name_of(key)} was provided by {function!r}; expected a factory, as a function or"
                f" a class. To give everybody one value, write a function: lambda: value"
            )
        parameters = parameters_of(function)
        hints = _hints(function, is_needed=bool(parameters))
        asks = {
            name: asked
            for name, parameter in parameters.items()
            if (asked := _asked(key, function, parameter, hints)) is not None
        }
        return cls(key, function, _mode_of(function, hints.get("return")), asks)

    @classmethod
    def giving(cls, key: Any, value: Any) -> Factory:
        """Return a factory that always gives one value, which is neither entered nor closed."""
        return cls(key, lambda: value)


def check_key(key: Any) -> None:
    """Check that a type may be provided.

    Raises:
        RegistrationError: it may not; the text says why.
    """
    why = why_not(key)
    if why:
        raise RegistrationError(
            f"{name_of(key)} can't be provided: {why}. Expected a class of yours, a class with its"
            " parameters, or a typing.NewType"
        )


def place_of(function: Any) -> str:
    """Return where a factory is defined, for errors."""
    while isinstance(function, functools.partial):
        function = function.func
    return where(function) if hasattr(function, "__qualname__") else repr(function)


def manager_of(factory: Factory, made: Any) -> Any:
    """Return what a factory returned as a context manager, which a bare generator is made.

    Raises:
        RegistrationError: it is neither.
    """
    if isinstance(made, Generator):
        return contextlib.contextmanager(lambda: made)()
    if isinstance(made, AsyncGenerator):
        return contextlib.asynccontextmanager(lambda: made)()
    expected = AbstractAsyncContextManager if factory.is_async else AbstractContextManager
    if not isinstance(made, expected):
        kind = "an async generator or" if factory.is_async else "a generator or"
        raise RegistrationError(
            f"the factory of {name_of(factory.key)}, {factory.place}, returned {made!r:.200};"
            f" expected {kind} a context manager, as its annotation says"
        )
    return made


def check_plain(factory: Factory, made: Any) -> Any:
    """Return a value as it is, unless it must be awaited or entered first.

    Raises:
        RegistrationError: it is a coroutine or a generator.
    """
    if isinstance(made, (Coroutine, Generator, AsyncGenerator)):
        kind = "a coroutine" if isinstance(made, Coroutine) else "a generator"
        if not isinstance(made, AsyncGenerator):
            made.close()
        raise RegistrationError(
            f"the factory of {name_of(factory.key)}, {factory.place}, returned {kind}, which it"
            " does not show. Make it an async function or a generator function, or annotate what it"
            " returns"
        )
    return made


def _hints(function: Callable[..., Any], *, is_needed: bool) -> dict[str, Any]:
    try:
        return hints_of(function)
    except NameError as error:
        if not is_needed:
            return {}
        raise RegistrationError(
            f"{place_of(function)}: an annotation can't be resolved ({error}). A factory's"
            " annotations are read when it is provided: import the name outside TYPE_CHECKING."
        ) from error
    except TypeError:
        return {}


def _asked(
    key: Any, function: Callable[..., Any], parameter: inspect.Parameter, hints: Mapping[str, Any]
) -> Asked | None:
    """Return what a factory's parameter asks for; None to leave it at its default."""
    hint, may_be_none = without_none(hints.get(parameter.name))
    has_default = parameter.default is not inspect.Parameter.empty
    can_be_given = hint in (Session, Metadata) or (hint is not None and not why_not(hint))
    if can_be_given and parameter.kind is not inspect.Parameter.POSITIONAL_ONLY:
        return Asked(hint, has_default, may_be_none)
    if has_default:
        return None
    if can_be_given:
        what = "is positional-only, and values are given by name"
    else:
        what = "has no annotation" if hint is None else f"is annotated with {name_of(hint)}"
    raise RegistrationError(
        f"the factory of {name_of(key)}, {place_of(function)}: the parameter {parameter.name!r}"
        f" {what}; expected Session, Metadata, or a class that is provided, too. Annotate it, or"
        " give it a default"
    )


def _mode_of(function: Callable[..., Any], returned: Any) -> Mode:
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        if hasattr(function, "__enter__") and hasattr(function, "__exit__"):
            return Mode.ENTER
        is_async = hasattr(function, "__aenter__") and hasattr(function, "__aexit__")
        return Mode.ENTER_ASYNC if is_async else Mode.VALUE
    # A decorator such as @contextmanager keeps the function that it was given.
    for one in (function, type(function).__call__, inspect.unwrap(function)):
        if inspect.isgeneratorfunction(one):
            return Mode.ENTER
        if inspect.isasyncgenfunction(one):
            return Mode.ENTER_ASYNC
        if inspect.iscoroutinefunction(one):
            return Mode.AWAIT
    return _RETURNED.get(typing.get_origin(returned) or returned, Mode.VALUE)
