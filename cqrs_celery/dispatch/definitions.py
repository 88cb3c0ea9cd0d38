"""Keep the handlers that the decorators declare, for all applications of the process.

A second handler for a command or query is refused here, with an error that names both. Declaring
the same function of the same module again replaces it: a reloaded module is not a conflict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal
from weakref import WeakMethod

from ..errors import DuplicateRegistration, RegistrationError
from ..messages.registry import registry, where
from .asking import Asked
from .conflicts import OnConflict
from .results import Returned
from .retrying import Lettering, Retrying


@dataclass(frozen=True, eq=False)
class Definition:
    """One declared handler.

    Attributes:
        kind: command, query or event; a subscription to messages is of the kind event too.
        messages: the classes that it handles; only a subscription may have several.
        function: the user's function.
        injections: its parameters for values that the package itself provides, each with its class.
        asked: its parameters for values that an application provides, each with its type.
        subscription: the name given to the decorator; "" if the function is a subscription of its
            own.
        options: Celery's task options.
        on_conflict: the options for conflicts with other writers.
        retrying: the options for retries after a failure.
        ordered: how a subscription keeps order; see `subscribes`.
        lettering: the options for a subscription's dead letters.
        batch: the most events that a subscription's function takes at once; 0 for a function that
            takes one, as an event.
    """

    kind: str
    messages: tuple[type[Any], ...]
    function: Callable[..., Any]
    injections: Mapping[str, type[Any]]
    subscription: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    on_conflict: OnConflict = field(default_factory=OnConflict)
    retrying: Retrying = field(default_factory=Retrying)
    ordered: bool | Literal["subscription"] = True
    lettering: Lettering = field(default_factory=Lettering)
    batch: int = 0
    asked: Mapping[str, Asked] = field(default_factory=dict)

    def renew(self) -> bool:
        """Replace its message classes by reloaded ones; return whether there were any.

        There are if the module of the messages was reloaded, and the handler's module was not.
        """
        current = tuple(map(registry.current, self.messages))
        is_old = current != self.messages
        if is_old:
            # Changed in place, since tasks and other objects refer to this definition.
            object.__setattr__(self, "messages", current)
        return is_old

    @property
    def is_async(self) -> bool:
        """Whether its function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @cached_property
    def returned(self) -> Returned:
        """The writer and reader of the function's return values."""
        return Returned(self.function)

    @property
    def place(self) -> tuple[str, str]:
        """Its function's module and name, which stay the same over a reload."""
        return self.function.__module__, self.function.__qualname__

    def subscription_name(self, application: str) -> str:
        """Return the full name of its subscription, which is also the name of its queue."""
        return _qualified(self.subscription or self.function.__name__, application)

    def task_name(self, application: str) -> str:
        """Return the name of its task, which Celery and Flower show."""
        if self.kind != "event":
            return str(self.messages[0].__registered__.full_name(application))
        name = self.subscription_name(application)
        return f"{name}.{self.function.__name__}" if self.subscription else name


def _qualified(name: str, application: str) -> str:
    return name if "." in name else f"{application}.{name}"


class Definitions:
    """The declared handlers of a process, with listeners that are called for new ones."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[Any, ...], Definition] = {}
        self._listeners: list[WeakMethod[Callable[[Definition], None]]] = []
        self._names: dict[Definition, frozenset[str]] = {}
        self._generation = self._renewed_at = -1

    def add(self, definition: Definition) -> None:
        """Declare a handler.

        Raises:
            DuplicateRegistration: another function handles the command or query, takes the event
                in the same subscription, has the same name in it, or has a task of the same name.
            RegistrationError: another function of the subscription has other options for its order
                or its dead letters.
        """
        self._renew()
        keys = list(_keys(definition))
        for key in keys:
            other = self._by_key.get(key)
            if other is not None and other.place != definition.place:
                raise DuplicateRegistration(
                    f"{_claim(definition, key)} is claimed by {where(other.function)} and by"
                    f" {where(definition.function)}; expected one. Remove one of them"
                    + (", or give it a subscription." if definition.kind == "event" else ".")
                )
        self._check_task_name(definition)
        self._check_agreement(definition)
        for key in [k for k, d in self._by_key.items() if d.place == definition.place]:
            if self._by_key[key].messages == definition.messages:
                del self._by_key[key]
        self._by_key.update(dict.fromkeys(keys, definition))
        self._names = {}
        try:
            self._tell(definition)
        except DuplicateRegistration:
            for key in keys:
                del self._by_key[key]
            raise

    def _tell(self, definition: Definition) -> None:
        for reference in list(self._listeners):
            listener = reference()
            if listener is None:
                self._listeners.remove(reference)
            else:
                listener(definition)

    def _check_task_name(self, definition: Definition) -> None:
        """Refuse a task's name that is taken, whatever the application's name is.

        A name with an application's name and one without may be the same in that application only;
        `task_of` finds such a conflict there.
        """
        for other in dict.fromkeys(self._by_key.values()):
            if "query" in (other.kind, definition.kind) or other.place == definition.place:
                continue
            name = definition.task_name("")
            if other.task_name("") == name:
                raise task_name_taken(name.lstrip("."), other, definition)

    def _check_agreement(self, definition: Definition) -> None:
        for other in self.all() if definition.subscription else ():
            if other.subscription != definition.subscription or other.place == definition.place:
                continue
            for name, one, two in (
                ("ordered", other.ordered, definition.ordered),
                ("on_dead_letter and dead_letter_ttl_s", other.lettering, definition.lettering),
            ):
                if one != two:
                    raise RegistrationError(
                        f"{where(other.function)} and {where(definition.function)} are of the"
                        f" subscription {definition.subscription!r}, but differ in {name}:"
                        f" {one!r} and {two!r}. It is the queue's: say the same in both."
                    )

    def listen(self, listener: Callable[[Definition], None]) -> None:
        """Call a method for every handler that is declared from now on, while its object exists."""
        self._listeners.append(WeakMethod(listener))

    def _renew(self) -> None:
        """Renew the definitions after messages were registered, which may be a reload."""
        self._renewed_at = registry.generation
        known = dict.fromkeys(self._by_key.values())
        # All of them, not up to the first that was renewed.
        renewed = [definition.renew() for definition in known]
        if any(renewed):
            self._by_key = {key: one for one in known for key in _keys(one)}
            self._names = {}

    def all(self) -> list[Definition]:
        """Return all handlers in the order of their declaration."""
        if self._renewed_at != registry.generation:
            self._renew()
        return list(dict.fromkeys(self._by_key.values()))

    def handler_of(self, message: type[Any]) -> Definition | None:
        """Return the handler of a command or query class, or None if there is none."""
        if self._renewed_at != registry.generation:
            self._renew()
        found = self._by_key.get((message.__kind__, message))
        if found is None and registry.has_reloaded:
            # The message may be of the class before a reload, imported elsewhere.
            found = self._by_key.get((message.__kind__, registry.current(message)))
        return found

    def topics_of(self, definition: Definition) -> list[type[Any]]:
        """Return the classes of events and messages that a subscription's function gets.

        A base class stands for all events below it, except those that another function of the same
        subscription names.
        """
        taken = {
            message
            for other in self._by_key.values()
            if other.kind == "event"
            and other is not definition
            and definition.subscription
            and other.subscription == definition.subscription
            for message in other.messages
        }
        found = dict.fromkeys(m for m in definition.messages if hasattr(m, "__registered__"))
        for message in definition.messages:
            for entry in registry.subclasses(message):
                # All classes are below Message; a subscription to Message gets published ones only.
                if entry.cls not in taken and entry.kind == message.__kind__:
                    found.setdefault(entry.cls)
        return list(found)

    def names_taken(self, definition: Definition) -> frozenset[str]:
        """Return the registered names of the classes that a subscription's function gets."""
        if self._generation != registry.generation:
            generation = registry.generation
            self._names, self._generation = {}, generation
        known = self._names
        if definition not in known:
            topics = self.topics_of(definition)
            known[definition] = frozenset(cls.__registered__.name for cls in topics)
        return known[definition]

    def subscribers_of(self, event: type[Any]) -> list[Definition]:
        """Return the subscriptions' functions that get a class of events or messages."""
        event = registry.current(event)
        return [d for d in self.all() if d.kind == "event" and event in self.topics_of(d)]


def _keys(definition: Definition) -> Iterator[tuple[Any, ...]]:
    if definition.kind != "event":
        yield definition.kind, definition.messages[0]
        return
    yield "task", definition.subscription, definition.function.__name__
    if definition.subscription:
        for message in definition.messages:
            yield "event", definition.subscription, message


def _claim(definition: Definition, key: tuple[Any, ...]) -> str:
    if definition.kind != "event":
        return f"the {definition.kind} {definition.messages[0].__qualname__}"
    if key[0] == "task":
        return f"the name {key[2]!r} in subscription {key[1] or key[2]!r}"
    return f"{key[2].__qualname__} in subscription {key[1]!r}"


def task_name_taken(name: str, one: Definition, other: Definition) -> DuplicateRegistration:
    """Return the error for two handlers whose tasks would have the same name."""
    return DuplicateRegistration(
        f"the task name {name!r} is claimed by {_role(one)}, {where(one.function)}, and by"
        f" {_role(other)}, {where(other.function)}: one of them would never run. Rename the"
        " command, the function, or the subscription of one of them."
    )


def _role(definition: Definition) -> str:
    if definition.kind != "event":
        return f"the handler of the {definition.kind} {definition.messages[0].__qualname__}"
    name = definition.subscription or definition.function.__name__
    return f"a function of the subscription {name!r}"


#: The handlers that were declared in this process.
definitions = Definitions()
