"""Read messages that older code has stored: upcast them, version by version, to today's classes.

    @upcaster("inventory.items_checked_in", 1)
    def place_was_unknown(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "place": "unknown"}                             # version 2 of the same

    @upcaster("inventory.item_changed", 3, into=(ItemRenamed, "inventory.item_moved"))
    def one_became_two(data: dict[str, Any]) -> list[EventData]:
        return [
            EventData("inventory.item_renamed", 1, {"name": data["name"]}),
            EventData("inventory.item_moved", 1, {"place": data["place"]}),
        ]                                                               # [] drops it

Stored data are never changed. An upcaster runs whenever an old message is read. Upcasters and
classes may be registered in any order.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import RegistrationError, UpcastFailed
from .registry import Registered, Registry, Upcaster, qualified, where
from .registry import registry as default_registry

F = TypeVar("F", bound=Callable[[dict[str, Any]], Any])

#: The kinds that are stored or sent, and so may be of an old version.
_KINDS = ("event", "command", "message")


class EventData(NamedTuple):
    """One of the events that an upcaster makes of an old one, as it would be stored today.

    Attributes:
        name: the event's name; without a dot, it belongs to the application.
        version: the version of the event's fields; it may itself be an old one that has an
            upcaster.
        data: the event's fields, as plain values.
    """

    name: str
    version: int
    data: dict[str, Any]


def upcaster(
    name: str,
    version: int,
    *,
    into: Sequence[str | type[Any]] = (),
    kind: str = "event",
    registry: Registry = default_registry,
) -> Callable[[F], F]:
    """Declare a function that turns an old version of a message into a later one.

    The function takes the fields as a dict, which it may change, and returns those of the next
    version. For an event, it may instead return a list of `EventData`: several to split the event,
    none to drop it. It must depend on nothing else, since it runs whenever the old version is read.

    Args:
        name: the name under which the message is stored.
        version: the version under which the message is stored.
        into: names or classes of other events that the function may return. Their subscribers then
            also get the events that are stored under the old name.
        kind: event, command or message; a query never leaves its process.
        registry: the registry that the upcaster enters.

    Returns:
        The decorator, which returns the function unchanged.

    Raises:
        RegistrationError: a name, the version or the kind is not valid.
        DuplicateRegistration: another function upcasts the same name and version.
    """
    if kind not in _KINDS:
        raise RegistrationError(
            f"@upcaster({name!r}, {version!r}) has the kind {kind!r}; accepted: {', '.join(_KINDS)}"
        )
    if isinstance(into, (str, type)):
        into = (into,)
    names = tuple(_name_of(one) for one in into)
    if names and kind != "event":
        raise RegistrationError(
            f"@upcaster({name!r}, {version!r}) has into, which is only for events: a {kind} keeps"
            " its name"
        )

    def declare(function: F) -> F:
        registry.add_upcaster(Upcaster(kind, name, version, function, names))
        return function

    return declare


def _name_of(one: Any) -> str:
    registered = getattr(one, "__registered__", None)
    return registered.name if isinstance(registered, Registered) else one


class Upcasting:
    """The way of an old version through upcasters to classes.

    Args:
        application: the prefix of names without a dot.
        registry: the upcasters and the classes.
    """

    def __init__(self, application: str, registry: Registry) -> None:
        self._application = application
        self._registry = registry

    def follow(
        self, first: Upcaster, name: str, version: int, data: Any
    ) -> list[tuple[Registered, EventData]]:
        """Return the messages that an old one has become, each with the class that reads it.

        Args:
            first: the upcaster that reads the message.
            name: the message's full name, as stored.
            version: its version, as stored.
            data: its fields; they are not changed.

        Raises:
            UpcastFailed: a function raised an error, or returned something that it may not.
            UnknownMessageType: neither a class nor an upcaster reads what a function returned.
        """
        return self._follow(first, EventData(name, version, data), ())

    def _follow(
        self, step: Upcaster, old: EventData, past: tuple[tuple[str, int], ...]
    ) -> list[tuple[Registered, EventData]]:
        if old[:2] in past:
            raise _failed(step, old, "leads back to itself; expected it to end at a class")
        found: list[tuple[Registered, EventData]] = []
        for one in self._apply(step, old):
            reader = self._registry.resolve(step.kind, one.name, one.version, self._application)
            if isinstance(reader, Upcaster):
                found += self._follow(reader, one, (*past, old[:2]))
            else:
                found.append((reader, one))
        return found

    def _apply(self, step: Upcaster, old: EventData) -> list[EventData]:
        if not isinstance(old.data, dict):
            raise _failed(step, old, f"was given {type(old.data).__name__}; expected an object")
        try:
            returned = step.function(_copied(old.data))
        except Exception as error:
            raise _failed(step, old, f"raised {type(error).__name__}: {error}") from error
        if isinstance(returned, dict):
            return [EventData(old.name, old.version + 1, returned)]
        return self._checked(step, old, returned)

    def _checked(self, step: Upcaster, old: EventData, returned: Any) -> list[EventData]:
        if not isinstance(returned, list) or not all(isinstance(e, EventData) for e in returned):
            raise _failed(
                step,
                old,
                f"returned {returned!r}; expected a dict, or a list of EventData, which is empty"
                " to drop the event",
            )
        names = {qualified(name, self._application) for name in step.into}
        own = {old.name, qualified(step.name, self._application)}
        given = [one._replace(name=qualified(one.name, self._application)) for one in returned]
        for one in given:
            if one.name in own:
                if one.version <= old.version:
                    raise _failed(
                        step, old, f"returned version {one.version}; expected a later one"
                    )
            elif one.name not in names:
                raise _failed(
                    step,
                    old,
                    f"returned {one.name!r}, which it does not declare: write"
                    f" @upcaster({step.name!r}, {step.version}, into=({one.name!r},)), so that its"
                    " subscribers get it",
                )
        return given


def _copied(value: Any) -> Any:
    """Return a deep copy of plain values, faster than `copy.deepcopy`."""
    kind = type(value)
    if kind is dict:
        return {name: _copied(one) for name, one in value.items()}
    if kind is list:
        return [_copied(one) for one in value]
    return value if kind in _SCALARS else copy.deepcopy(value)


_SCALARS = frozenset((str, int, float, bool, type(None)))


def _failed(step: Upcaster, old: EventData, what: str) -> UpcastFailed:
    return UpcastFailed(
        f"the {step.kind} {old.name!r}, version {old.version}, can't be upcast:"
        f" {where(step.function)} {what}",
        name=old.name,
        version=old.version,
    )
