"""Find the method of an aggregate that applies an event.

If several methods fit, the one for the event's most specific class is used. A subclass inherits the
methods of its bases; its own take precedence.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, overload

from ..errors import HandlerSignatureError, RegistrationError
from ..messages.message import Event
from ..messages.registry import registry, where

A = TypeVar("A")
E = TypeVar("E", bound=Event)
M = TypeVar("M", bound=Callable[..., None])


@overload
def applies(
    event_type: type[E], /
) -> Callable[[Callable[[A, E], None]], Callable[[A, E], None]]: ...


@overload
def applies(*event_types: type[Event]) -> Callable[[M], M]: ...


def applies(*event_types: Any) -> Any:
    """Mark a method of an aggregate as the one that applies events of these types.

    The method takes the event and changes the aggregate's attributes, nothing else: it runs when
    the event is recorded, and again whenever the aggregate is loaded.

    Args:
        event_types: one or more event classes; a base class stands for all its subclasses.

    Returns:
        The decorator, which returns the method unchanged.

    Raises:
        RegistrationError: no event types are given, or one is not an event class.
        HandlerSignatureError: the method can't be called with just the event, or is async.
    """
    for event_type in event_types:
        if not (isinstance(event_type, type) and issubclass(event_type, Event)):
            raise RegistrationError(
                f"@applies was given {event_type!r}; expected event classes:"
                " @applies(ItemCreated), or @applies(ItemRenamed, ItemMoved)"
            )
    if not event_types:
        raise RegistrationError("@applies() was given no event; expected @applies(ItemCreated)")

    def mark(method: Any) -> Any:
        _check_signature(method)
        method.__applies__ = event_types
        return method

    return mark


def appliers_of(cls: type[Any]) -> dict[type[Event], str]:
    """Return, for each event type, the name of the method of a class that applies it.

    Raises:
        RegistrationError: two methods of one class apply the same type; the text names both.
    """
    found: dict[type[Event], str] = {}
    for base in reversed(cls.__mro__):
        own: dict[type[Event], str] = {}
        for name, method in vars(base).items():
            for event_type in getattr(method, "__applies__", ()):
                if event_type in own:
                    other = getattr(base, own[event_type])
                    raise RegistrationError(
                        f"{event_type.__qualname__} is applied by {where(other)} and by"
                        f" {where(method)}; expected one method for it. Remove one @applies."
                    )
                own[event_type] = name
        found |= own
    return found


def applier_of(appliers: Mapping[type[Event], str], event_type: type[Event]) -> str | None:
    """Return the name of the method that applies events of a type; None if there is none.

    Args:
        appliers: the result of `appliers_of`.
        event_type: the event's class. After the reload of a module, it may be another object than
            the class that a method was declared for.
    """
    if not registry.has_reloaded:
        return next((appliers[cls] for cls in event_type.__mro__ if cls in appliers), None)
    current = {registry.current(cls): name for cls, name in appliers.items()}
    classes = map(registry.current, event_type.__mro__)
    return next((current[cls] for cls in classes if cls in current), None)


def _check_signature(method: Any) -> None:
    try:
        inspect.signature(method).bind("self", "event")
    except TypeError as error:
        raise HandlerSignatureError(
            f"{where(method)} applies events, but can't be called with just an event: {error};"
            " expected (self, event)"
        ) from error
    if inspect.iscoroutinefunction(method):
        raise HandlerSignatureError(
            f"{where(method)} applies events, but is async; expected an ordinary method, since"
            " applying an event only changes attributes"
        )
