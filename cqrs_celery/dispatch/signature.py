"""Read a handler's parameters: the one for the message, and the types of the others."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import HandlerSignatureError
from ..messages.metadata import Metadata
from ..messages.registry import where
from ..session.session import Session
from ..store.events import RecordedEvent
from .asking import Asked, name_of, why_not, without_none

#: The types that the package itself provides to a handler's parameters, by the handler's kind.
INJECTABLE: Mapping[str, tuple[type[Any], ...]] = {
    "command": (Session, Metadata),
    "query": (Session,),
    "event": (RecordedEvent, Session, Metadata),
    "message": (Session, Metadata),
    # No session: the commit of a batch could not be told apart from those of its single events.
    "batch": (),
}


class Parameters(NamedTuple):
    """A handler's parameters after the message.

    Attributes:
        injections: those for values that the package itself provides, each with its class.
        asked: those for values that an application provides, each with its type.
    """

    injections: dict[str, type[Any]]
    asked: dict[str, Asked]


def read_parameters(
    function: Callable[..., Any], kind: str, messages: Sequence[type[Any]]
) -> Parameters:
    """Check a handler's parameters, and return what each of them is to be given.

    Whether the application provides a type is checked later: at a worker's start, or when the
    handler is first called.

    Args:
        function: the handler; its first parameter takes the message.
        kind: command, query, event, message, or batch for a function that takes events as a list.
        messages: the classes that it handles.

    Raises:
        HandlerSignatureError: the first parameter's annotation does not fit the messages, or a
            handler of this kind can't be given a value of another parameter's annotation.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters:
        raise HandlerSignatureError(
            f"{where(function)} takes no argument; expected the {kind} as its first one"
        )
    hints = _hints(function)
    first, *others = parameters
    if kind == "batch":
        _check_list(function, first.name, hints.get(first.name))
    else:
        _check_message(function, kind, messages, first.name, hints.get(first.name))
    found = Parameters({}, {})
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in others:
        hint, may_be_none = without_none(hints.get(parameter.name))
        has_default = parameter.default is not inspect.Parameter.empty
        is_by_position = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
        cls = typing.get_origin(hint) or hint
        if parameter.kind in variadic or (is_by_position and has_default):
            continue
        if is_by_position:
            raise HandlerSignatureError(
                f"{where(function)}: the parameter {parameter.name!r} is positional-only, and would"
                " be given by name; expected the message alone in front of the slash"
            )
        if cls in INJECTABLE[kind]:
            found.injections[parameter.name] = cls
        elif hint is not None and not why_not(hint):
            found.asked[parameter.name] = Asked(hint, has_default, may_be_none)
        elif not has_default:
            raise _refused(function, kind, parameter.name, hints.get(parameter.name))
    return found


def _refused(function: Callable[..., Any], kind: str, name: str, hint: Any) -> Exception:
    names = ", ".join(c.__name__ for c in INJECTABLE[kind]) or "nothing else"
    found = "has no annotation" if hint is None else f"is annotated with {name_of(hint)}"
    return HandlerSignatureError(
        f"{where(function)}: the parameter {name!r} {found}; expected a class of yours"
        " that the application provides (cqrs.provide), or one of what a handler of"
        f" a {kind} is given: {names}"
    )


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError as error:
        raise HandlerSignatureError(
            f"{where(function)}: an annotation can't be resolved ({error}). Handlers' annotations"
            " are read when they are declared: import the name outside TYPE_CHECKING."
        ) from error


def _check_message(
    function: Callable[..., Any], kind: str, messages: Sequence[type[Any]], name: str, hint: Any
) -> None:
    if hint is None or hint is Any:
        return
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    classes = [typing.get_origin(c) or c for c in (typing.get_args(hint) if is_union else (hint,))]
    accepted = tuple(c for c in classes if isinstance(c, type))
    for message in messages:
        if not issubclass(message, accepted):
            raise HandlerSignatureError(
                f"{where(function)} is declared for the {kind} {message.__qualname__}, but its"
                f" parameter {name!r} is annotated with {name_of(hint)}; expected"
                f" {message.__qualname__} or a base of it"
            )


def _check_list(function: Callable[..., Any], name: str, hint: Any) -> None:
    if hint is None or hint is Any:
        return
    origin = typing.get_origin(hint) or hint
    (of,) = typing.get_args(hint) or (RecordedEvent,)
    is_list = isinstance(origin, type) and issubclass(list, origin)
    if not is_list or (typing.get_origin(of) or of) is not RecordedEvent:
        raise HandlerSignatureError(
            f"{where(function)} takes a batch, but its parameter {name!r} is annotated with"
            f" {name_of(hint)}; expected list[RecordedEvent]"
        )
