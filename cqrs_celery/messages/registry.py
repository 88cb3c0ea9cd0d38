"""The registry of message classes by kind, name and version, and of their upcasters.

Stored data and sent messages carry names, never Python paths. A class may therefore move or be
renamed in Python, and stored data stay as they are. Registering the same class of the same module
again replaces the entry: a reloaded module is not a conflict.

For a stored name and version, an upcaster comes before a class, and both come before an alias.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DuplicateRegistration, RegistrationError, UnknownMessageType

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Registered:
    """The kind, name and version under which a class is registered.

    Attributes:
        kind: command, query, event or message.
        name: the name as written; without a dot it belongs to whichever application uses it.
        version: the version of the class's fields; 1 or more.
        cls: the class.
        aliases: the class's former names.
    """

    kind: str
    name: str
    version: int
    cls: type[Any]
    aliases: tuple[str, ...] = ()

    def full_name(self, application: str) -> str:
        """Return the name prefixed with its application, as it is stored and sent."""
        return qualified(self.name, application)


@dataclass(frozen=True, slots=True)
class Upcaster:
    """A function that turns the data of one version into that of later ones.

    Attributes:
        kind: command, event or message.
        name: the name that it reads; without a dot it belongs to whichever application uses it.
        version: the version that it reads.
        function: the user's function; takes the fields, and returns those of the next version, or
            several events.
        into: names of other events that it may return.
    """

    kind: str
    name: str
    version: int
    function: Callable[[dict[str, Any]], Any]
    into: tuple[str, ...] = field(default=())


def qualified(name: str, application: str) -> str:
    """Return a name prefixed with the application, unless it has a prefix."""
    return name if "." in name else f"{application}.{name}"


def where(obj: Any) -> str:
    """Return the file and line in which a class or function is defined, for error messages."""
    try:
        _, line = inspect.getsourcelines(obj)
        file = inspect.getsourcefile(obj) or "?"
    except (OSError, TypeError):
        return f"{obj.__module__}.{obj.__qualname__}"
    return f"{obj.__module__}.{obj.__qualname__} ({file}:{line})"


class Registry:
    """The message classes and upcasters of a process."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str, int], Registered] = {}
        self._upcasters: dict[tuple[str, str, int], Upcaster] = {}
        self._aliases: dict[tuple[str, str], Registered] = {}
        # The results of look-ups. Each registration replaces the dict, so that a look-up that began
        # before it stores its result, which may be outdated, in the old dict.
        self._found: dict[tuple[str, str, int, str], Registered | Upcaster] = {}
        #: Increases with every registration; results of an older generation are outdated.
        self.generation = 0
        #: Whether a class has replaced another, as after the reload of a module.
        self.has_reloaded = False

    def add(
        self, kind: str, name: str, version: int, cls: type[Any], aliases: Sequence[str] = ()
    ) -> Registered:
        """Register a class.

        Args:
            kind: command, query, event or message.
            name: letters, digits, `_` and `-`, in segments separated by dots.
            version: 1 or more.
            cls: the class.
            aliases: names under which it was stored before, in any version.

        Returns:
            The entry.

        Raises:
            RegistrationError: a name or the version is not valid.
            DuplicateRegistration: another class has the same kind, name and version, or alias.
        """
        for one in (name, *aliases):
            _check_name(one, cls)
        _check_version(version, cls)
        entry = Registered(kind, name, version, cls, tuple(aliases))
        other = self._by_key.get((kind, name, version))
        if other and not is_same(other.cls, cls):
            raise DuplicateRegistration(
                f"the {kind} name {name!r}, version {version}, is claimed by {where(other.cls)} and"
                f" by {where(cls)}. Give one of them another name or version:"
                f' class {cls.__name__}(…, name="…")'
            )
        self._check_aliases(entry)
        for key in [k for k, e in self._aliases.items() if is_same(e.cls, cls)]:
            del self._aliases[key]
        self._by_key[kind, name, version] = entry
        self.has_reloaded |= other is not None
        for alias in entry.aliases:
            self._aliases[kind, alias] = entry
        self._found = {}
        self.generation += 1
        return entry

    def current(self, cls: Any) -> Any:
        """Return the class that has replaced a class, as after the reload of its module.

        Returns:
            The newer class; the class itself if it was not replaced.
        """
        entry = vars(cls).get("__registered__")
        if entry is None:
            return cls
        other = self._by_key.get((entry.kind, entry.name, entry.version))
        return other.cls if other is not None and is_same(other.cls, cls) else cls

    def _check_aliases(self, entry: Registered) -> None:
        claims = [(self._aliases.get((entry.kind, entry.name)), entry.name)]
        claims = [(o, a) for o, a in claims if o and o.version == entry.version]
        for alias in entry.aliases:
            claims.append((self._by_key.get((entry.kind, alias, entry.version)), alias))
            other = self._aliases.get((entry.kind, alias))
            claims.append((other if other and other.name != entry.name else None, alias))
            if alias == entry.name:
                raise RegistrationError(f"{where(entry.cls)} has its own name among its aliases")
        for other, alias in claims:
            if other and not is_same(other.cls, entry.cls):
                raise DuplicateRegistration(
                    f"the {entry.kind} name {alias!r} is claimed by {where(other.cls)} and by"
                    f" {where(entry.cls)}, by one of them as an alias. What was stored under it"
                    " can be of only one class: remove the alias, or write an upcaster."
                )

    def add_upcaster(self, upcaster: Upcaster) -> None:
        """Register an upcaster.

        Raises:
            RegistrationError: a name or the version is not valid.
            DuplicateRegistration: another function upcasts the same kind, name and version.
        """
        for name in (upcaster.name, *upcaster.into):
            _check_name(name, upcaster.function)
        _check_version(upcaster.version, upcaster.function)
        key = upcaster.kind, upcaster.name, upcaster.version
        other = self._upcasters.get(key)
        if other and not is_same(other.function, upcaster.function):
            raise DuplicateRegistration(
                f"the {upcaster.kind} {upcaster.name!r}, version {upcaster.version}, is upcast by"
                f" {where(other.function)} and by {where(upcaster.function)}; expected"
                " one. Remove one of them."
            )
        self._upcasters[key] = upcaster
        self._found = {}
        self.generation += 1

    def resolve(
        self, kind: str, full_name: str, version: int, application: str
    ) -> Registered | Upcaster:
        """Return what reads a stored or received name: a class or an upcaster.

        Args:
            kind: command, query, event or message.
            full_name: the name, as stored or sent.
            version: the version, as stored or sent.
            application: this application; its names may be registered without the prefix.

        Raises:
            UnknownMessageType: the name and version are not registered; the text suggests a remedy.
        """
        asked, known = (kind, full_name, version, application), self._found
        found = known.get(asked)
        if found is None:
            found = known[asked] = self._resolve(*asked)
        return found

    def _resolve(
        self, kind: str, full_name: str, version: int, application: str
    ) -> Registered | Upcaster:
        name, seen = full_name, {full_name}
        while True:
            for known in _spellings(name, application):
                key = kind, known, version
                found = self._upcasters.get(key) or self._by_key.get(key)
                if found is not None:
                    return found
            aliased = [self._aliases.get((kind, k)) for k in _spellings(name, application)]
            entry = next((entry for entry in aliased if entry), None)
            if entry is None or entry.full_name(application) in seen:
                raise self._unknown(kind, full_name, name, version, application)
            name = entry.full_name(application)
            seen.add(name)

    def find(self, kind: str, full_name: str, version: int, application: str) -> Registered:
        """Return the class registered for a stored or received name.

        Args:
            kind: command, query, event or message.
            full_name: the name, as stored or sent.
            version: the version, as stored or sent.
            application: this application; its names may be registered without the prefix.

        Raises:
            UnknownMessageType: the name and version are not registered, or an upcaster reads them.
        """
        found = self.resolve(kind, full_name, version, application)
        if isinstance(found, Upcaster):
            raise self._unknown(kind, full_name, full_name, version, application)
        return found

    def knows(self, kind: str, full_name: str, application: str) -> bool:
        """Return whether any version of a name is read here, by a class, an alias or an upcaster.

        Args:
            kind: command, query, event or message.
            full_name: the name, as stored or sent.
            application: this application; its names may be registered without the prefix.
        """
        spellings = _spellings(full_name, application)
        names = {(of, name) for of, name, _ in [*list(self._by_key), *list(self._upcasters)]}
        return any((kind, name) in names or (kind, name) in self._aliases for name in spellings)

    def origins(self, kind: str, full_name: str, application: str) -> list[str]:
        """Return the full names of all stored messages that may be read as this one.

        Args:
            kind: command, query, event or message.
            full_name: the full name of the message that is read.
            application: this application.

        Returns:
            The name itself first; then its aliases, and the names from which upcasters make it.
        """
        edges: dict[str, list[str]] = {}
        for (of_kind, alias), entry in list(self._aliases.items()):
            if of_kind == kind:
                to = entry.full_name(application)
                edges.setdefault(to, []).append(qualified(alias, application))
        for (of_kind, name, _), upcaster in list(self._upcasters.items()):
            for into in upcaster.into if of_kind == kind else ():
                to = qualified(into, application)
                edges.setdefault(to, []).append(qualified(name, application))
        found, waiting = {full_name: None}, [full_name]
        while waiting:
            for name in edges.get(waiting.pop(0), ()):
                if name not in found:
                    found[name] = None
                    waiting.append(name)
        return list(found)

    def _unknown(
        self, kind: str, full_name: str, name: str, version: int, application: str
    ) -> UnknownMessageType:
        versions = sorted(
            e.version
            for e in list(self._by_key.values())
            if e.kind == kind and e.full_name(application) == name
        )
        text = f"the {kind} {full_name!r}, version {version}, is unknown here: "
        if not versions:
            text += (
                "no such name is registered. Import the module that defines it, define it under"
                " this name and version, or give the class that replaces it an alias."
            )
        else:
            known = ", ".join(f"{name} version {one}" for one in versions)
            text += f"registered is {known}" + (
                f", and no upcaster leads there. Write one: @upcaster({name!r}, {version})."
                if version < versions[-1]
                else ". Newer code wrote it: bring this process up to date."
            )
        return UnknownMessageType(text, name=full_name, version=version)

    def subclasses(self, base: type[Any]) -> Iterator[Registered]:
        """Yield the entry of every registered class that is the base or a subclass of it."""
        for entry in list(self._by_key.values()):
            if issubclass(entry.cls, base) or (
                self.has_reloaded and any(self.current(one) is base for one in entry.cls.__mro__)
            ):
                yield entry


def _spellings(full_name: str, application: str) -> tuple[str, ...]:
    """Return the names under which a message of a full name may be registered."""
    if full_name.startswith(application + "."):
        return full_name, full_name[len(application) + 1 :]
    return (full_name,)


def is_same(one: Any, other: Any) -> bool:
    """Return whether two classes or functions have one definition, as after a module's reload."""
    return bool(one.__module__ == other.__module__ and one.__qualname__ == other.__qualname__)


def _check_name(name: Any, owner: Any) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RegistrationError(
            f"{where(owner)} has the name {name!r}; expected letters, digits, _ and - in segments"
            " separated by dots, such as inventory.item_created"
        )


def _check_version(version: Any, owner: Any) -> None:
    if type(version) is not int or version < 1:  # True is an int too
        raise RegistrationError(
            f"{where(owner)} has the version {version!r}; expected a whole number from 1"
        )


#: The registry that message classes enter when they are defined.
registry = Registry()
