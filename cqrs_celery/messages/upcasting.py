"""Read what older code has stored: lead it, version by version, to the classes of today.

    @upcaster("inventory.items_checked_in", 1)
    def place_was_unknown(data: dict[str, Any]) -> dict[str, Any]:
        return {**data, "place": "unknown"}                             # version 2 of the same

    @upcaster("inventory.item_changed", 3, into=(ItemRenamed, "inventory.item_moved"))
    def one_became_two(data: dict[str, Any]) -> list[EventData]:
        return [
            EventData("inventory.item_renamed", 1, {"name": data["name"]}),
            EventData("inventory.item_moved", 1, {"place": data["place"]}),
        ]                                                               # [] drops it

What is stored is never changed. An upcaster runs whenever an old one is read; the order in which
upcasters and classes are registered has no influence.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from ..errors import RegistrationError, UpcastFailed
from .registry import Registered, Registry, Upcaster, qualified, where
from .registry import registry as default_registry

F = TypeVar("F", bound=Callable[[dict[str, Any]], Any])

#: What is stored or sent, and so may be old.
_KINDS = ("event", "command", "message")


class EventData(NamedTuple):
    """One of the events that an upcaster makes of an old one: what would be stored today.

    Attributes:
        name: the event's; without a dot, it is the application's own.
        version: of the data's shape; it may be an old one itself, with an upcaster of its own.
        data: its fields, as plain values.
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
    """Declare the function that leads from an old version to later ones.

    The function takes the fields as a dict of its own, and returns the next version's, or, for an
    event, a list of `EventData`: several for a split, none to drop it. It may not depend on
    anything else: it runs whenever the old version is read.

    Args:
        name: of what is stored.
        version: of what is stored.
        into: names or classes of other events that the function may return. Their subscribers get
            what is stored under the old name from then on.
        kind: event, command or message; a query never leaves its process.
        registry: where it enters.

    Raises:
        RegistrationError: a name, the version or the kind is not one.
        DuplicateRegistration: another function upcasts the same.
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
            f"@upcaster({name!r}, {version!r}) has into, which is for events: a {kind} is read as"
            " one of the same name"
        )

    def declare(function: F) -> F:
        registry.add_upcaster(Upcaster(kind, name, version, function, names))
        return function

    return declare


def _name_of(one: Any) -> str:
    registered = getattr(one, "__registered__", None)
    return registered.name if isinstance(registered, Registered) else one


class Upcasting:
    """Follow upcasters from an old version to classes.

    Args:
        application: put in front of names that have no dot.
        registry: has the upcasters and the classes.
    """

    def __init__(self, application: str, registry: Registry) -> None:
        self._application = application
        self._registry = registry

    def follow(
        self, first: Upcaster, name: str, version: int, data: Any
    ) -> list[tuple[Registered, EventData]]:
        """Return what an old message has become: each with the class that reads it.

        Args:
            first: reads the message.
            name: its full name, as stored.
            version: as stored.
            data: its fields, which stay as they are.

        Raises:
            UpcastFailed: a function raised, or returned what it may not.
            UnknownMessageType: nobody reads what one returned.
        """
        return self._follow(first, EventData(name, version, data), ())

    def _follow(
        self, step: Upcaster, old: EventData, past: tuple[tuple[str, int], ...]
    ) -> list[tuple[Registered, EventData]]:
        if old[:2] in past:
            raise _failed(step, old, "leads back to itself; expected the way to end at a class")
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
                    f"returned {one.name!r}, which is not among what it may: say"
                    f" @upcaster({step.name!r}, {step.version}, into=({one.name!r},)), so that its"
                    " subscribers get it",
                )
        return given


def _copied(value: Any) -> Any:
    """Return a copy of plain values, all the way down, sooner than `copy.deepcopy` does."""
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
