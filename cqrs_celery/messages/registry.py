"""Know every message class by its kind, name and version.

Stored data and sent messages carry names, never Python paths, so a class may move or be renamed
in Python without touching what was stored. Registering the same module and class again replaces
the entry: a reloaded module is not a conflict.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import DuplicateRegistration, RegistrationError, UnknownMessageType

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True, slots=True)
class Registered:
    """Say under which kind, name and version a class is registered.

    Attributes:
        kind: command, query, event or message.
        name: as written; without a dot it belongs to whichever application uses it.
        version: of the content's shape; 1 or more.
        cls: the class.
    """

    kind: str
    name: str
    version: int
    cls: type[Any]

    def full_name(self, application: str) -> str:
        """Return the name with its application in front, as it is stored and sent."""
        return self.name if "." in self.name else f"{application}.{self.name}"


def where(obj: Any) -> str:
    """Say in which file and line a class or function is defined, for error messages."""
    try:
        _, line = inspect.getsourcelines(obj)
        file = inspect.getsourcefile(obj) or "?"
    except (OSError, TypeError):
        return f"{obj.__module__}.{obj.__qualname__}"
    return f"{obj.__module__}.{obj.__qualname__} ({file}:{line})"


class Registry:
    """Hold the message classes of a process."""

    def __init__(self) -> None:
        self._by_key: dict[tuple[str, str, int], Registered] = {}

    def add(self, kind: str, name: str, version: int, cls: type[Any]) -> Registered:
        """Register a class.

        Args:
            kind: command, query, event or message.
            name: letters, digits, `_` and `-`, in segments separated by dots.
            version: 1 or more.
            cls: the class.

        Raises:
            RegistrationError: the name or the version is not one.
            DuplicateRegistration: another class has the kind, name and version.
        """
        if not _NAME.fullmatch(name):
            raise RegistrationError(
                f"{where(cls)} has the name {name!r}; expected letters, digits, _ and - in segments"
                " separated by dots, as inventory.item_created"
            )
        if type(version) is not int or version < 1:  # True is an int too
            raise RegistrationError(
                f"{where(cls)} has the version {version!r}; expected a whole number from 1"
            )
        other = self._by_key.get((kind, name, version))
        if other and (other.cls.__module__, other.cls.__qualname__) != (
            cls.__module__,
            cls.__qualname__,
        ):
            raise DuplicateRegistration(
                f"the {kind} name {name!r}, version {version}, is claimed by {where(other.cls)} and"
                f" by {where(cls)}. Give one of them another name or version:"
                f' class {cls.__name__}(…, name="…")'
            )
        entry = self._by_key[kind, name, version] = Registered(kind, name, version, cls)
        return entry

    def find(self, kind: str, full_name: str, version: int, application: str) -> Registered:
        """Return the class registered for a stored or received name.

        Args:
            kind: command, query, event or message.
            full_name: as stored or sent.
            version: as stored or sent.
            application: ours; a name of it may be registered without it.

        Raises:
            UnknownMessageType: nobody registered it.
        """
        entry = self._by_key.get((kind, full_name, version))
        if entry is None and full_name.startswith(application + "."):
            entry = self._by_key.get((kind, full_name[len(application) + 1 :], version))
        if entry is None:
            known = sorted(
                f"{e.full_name(application)} version {e.version}"
                for e in self._by_key.values()
                if e.kind == kind and e.full_name(application) == full_name
            )
            found = f"registered is {', '.join(known)}" if known else "no such name is registered"
            raise UnknownMessageType(
                f"the {kind} {full_name!r}, version {version}, is unknown here: {found}. Import the"
                " module that defines it, or define it under this name and version.",
                name=full_name,
                version=version,
            )
        return entry

    def subclasses(self, base: type[Any]) -> Iterator[Registered]:
        """Yield every registered class that is the base or below it."""
        for entry in list(self._by_key.values()):
            if issubclass(entry.cls, base):
                yield entry


#: The registry that message classes enter when they are defined.
registry = Registry()
