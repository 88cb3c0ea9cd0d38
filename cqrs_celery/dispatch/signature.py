"""Read a handler's parameters: which takes the message, and what the others are given."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import HandlerSignatureError
from ..messages.metadata import Metadata
from ..messages.registry import where
from ..session.session import Session
from ..store.events import RecordedEvent

#: What a handler can be given, by kind; the keys are what its parameters are annotated with.
INJECTABLE: Mapping[str, tuple[type[Any], ...]] = {
    "command": (Session, Metadata),
    "query": (Session,),
    "event": (RecordedEvent, Session, Metadata),
    "message": (Session, Metadata),
    # No session: what a batch commits could not be told from what its events commit one by one.
    "batch": (),
}


def injections(
    function: Callable[..., Any], kind: str, messages: Sequence[type[Any]]
) -> dict[str, type[Any]]:
    """Check a handler's parameters, and say what to give to which.

    Args:
        function: the handler; its first parameter takes the message.
        kind: command, query, event, message, or batch for a function that takes events as a list.
        messages: the classes that it handles.

    Returns:
        The other parameters' names, each with the class that it is annotated with.

    Raises:
        HandlerSignatureError: the first parameter's annotation does not fit the messages, or
            another parameter's is nothing that a handler of this kind is given.
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
    found: dict[str, type[Any]] = {}
    for parameter in others:
        hint = hints.get(parameter.name)
        cls = typing.get_origin(hint) or hint
        accepted = INJECTABLE[kind]
        if cls in accepted:
            found[parameter.name] = cls
        elif parameter.default is inspect.Parameter.empty and parameter.kind not in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.VAR_KEYWORD,
        ):
            names = ", ".join(c.__name__ for c in accepted) or "nothing else"
            raise HandlerSignatureError(
                f"{where(function)}: the parameter {parameter.name!r} is annotated with"
                f" {_name(hint)}; expected one of what a handler of a {kind} is given: {names}"
            )
    return found


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
                f" parameter {name!r} is annotated with {_name(hint)}; expected"
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
            f" {_name(hint)}; expected list[RecordedEvent]"
        )


def _name(hint: Any) -> str:
    if hint is None:
        return "nothing"
    return hint.__qualname__ if isinstance(hint, type) else str(hint)
