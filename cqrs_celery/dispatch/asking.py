"""Read the types that a handler or a factory asks for from its parameters' annotations."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..messages.message import Message
from ..messages.metadata import Metadata
from ..session.session import Session
from ..store.events import RecordedEvent

#: The types that the package itself provides; an application may not provide them.
OWN = (Session, Metadata, RecordedEvent)


class Asked(NamedTuple):
    """The type that one parameter asks for.

    Attributes:
        key: a class, a `NewType`, or a class with its parameters, such as `Repository[Order]`.
        has_default: whether the parameter has a default, which is used if the type is not provided.
        may_be_none: whether the annotation accepts None, which is passed if the type is not
            provided.
    """

    key: Any
    has_default: bool = False
    may_be_none: bool = False

    @property
    def is_required(self) -> bool:
        """Whether the type must be provided."""
        return not (self.has_default or self.may_be_none)


def without_none(hint: Any) -> tuple[Any, bool]:
    """Return an annotation without its `| None`, and whether it had one."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [one for one in typing.get_args(hint) if one is not types.NoneType]
        if len(rest) == 1:
            return rest[0], True
    return hint, False


def why_not(key: Any) -> str:
    """Return why a type can't be provided, or "" if it can."""
    cls = typing.get_origin(key) or key
    if isinstance(cls, typing.NewType):
        return ""
    if not isinstance(cls, type) or cls in (Any, types.UnionType):
        return "it is no class"
    if cls in OWN or issubclass(cls, OWN):
        return "every handling has its own, which the package gives"
    if issubclass(cls, Message):
        return "it is a message, which a handler takes as its first parameter"
    if cls.__module__ == "builtins":
        return "it does not say which value is meant; use a class, or a typing.NewType"
    return ""


def name_of(key: Any) -> str:
    """Return the name of a type, for errors and logs."""
    if key is None:
        return "nothing"
    if isinstance(key, type) and typing.get_origin(key) is None:
        return key.__qualname__
    return str(getattr(key, "__name__", key)) if isinstance(key, typing.NewType) else str(key)


def names(keys: typing.Iterable[Any], *, none: str) -> str:
    """Return the names of types in alphabetical order, or `none` if there are none."""
    return ", ".join(sorted(map(name_of, keys))) or none


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function, of a class's `__init__`, or of a callable object.

    Raises:
        NameError: an annotation can't be resolved.
    """
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, type):
        init: Any = function.__init__  # type: ignore[misc]
        return typing.get_type_hints(init if isinstance(init, types.FunctionType) else function)
    if not hasattr(function, "__annotations__"):
        function = type(function).__call__
    return typing.get_type_hints(function)


def parameters_of(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters that a caller may pass by name; none if there is no signature."""
    try:
        found = inspect.signature(function).parameters
    except ValueError:
        return {}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in found.items() if one.kind not in variadic}
