"""Change methods of Celery's, once each, and check beforehand that what is changed is there.

Agents that measure applications wrap the same methods, before or after. So a change is noted on the
class that has the method, under a name of our own: `__wrapped__` is on anybody's wrapper.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from types import CodeType
from typing import Any, NamedTuple

import kombu

from ...errors import UnsupportedCelery

#: The versions of Celery and Kombu that have what is changed here; pyproject.toml says the same.
SUPPORTED = "celery>=5.7,<5.8 and kombu>=5.7,<5.8"

#: Where a class keeps the names of its methods that were changed here.
_MARK = "__cqrs_celery_patches__"


class Needed(NamedTuple):
    """A name of Celery's or Kombu's that is changed or used.

    Attributes:
        module: where it is; what is not imported in this process is not checked.
        name: of a class, or of a method or an attribute: "Request.on_retry".
        parameters: what a method is called with; None for an attribute, which any method of the
            class may set.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.parameters is None:
            return f"{self.module}.{self.name}"
        return f"{self.module}.{self.name}({', '.join(self.parameters)})"

    def is_there(self) -> bool:
        """Return whether it is there as it is needed; True where its module is not imported."""
        module = sys.modules.get(self.module)
        if module is None:
            return True
        class_name, _, name = self.name.partition(".")
        owner = getattr(module, class_name, None)
        if not name or owner is None:
            return owner is not None
        if self.parameters is None:
            return hasattr(owner, name) or name in _names_in(owner)
        return _takes(getattr(owner, name, None), self.parameters)


def methods(module: str, owner: str, **parameters: Sequence[str]) -> Iterator[Needed]:
    """Return methods of a class, each with what it is called with, in addition to `self`."""
    for name, names in parameters.items():
        yield Needed(module, f"{owner}.{name}", tuple(names))


def attributes(module: str, owner: str, *names: str) -> Iterator[Needed]:
    """Return attributes of a class or of its instances."""
    for name in names:
        yield Needed(module, f"{owner}.{name}")


def check(needed: Iterable[Needed]) -> None:
    """Check that all that is changed or used is there.

    Raises:
        UnsupportedCelery: something is not, in the version that is installed.
    """
    missing = tuple(str(one) for one in needed if not one.is_there())
    if missing:
        celery = getattr(sys.modules.get("celery"), "__version__", "none")
        raise UnsupportedCelery(
            f"Celery {celery} with Kombu {kombu.__version__} can't run a worker on the reliable"
            f" queue: {', '.join(missing)} is not there, or is called otherwise. The transport"
            " changes it, so that no task is lost or run twice when a connection breaks. Supported"
            f" are {SUPPORTED}. Install these, or a version of cqrs-celery that supports yours",
            celery_version=celery,
            kombu_version=kombu.__version__,
            missing=missing,
        )


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
    """Put a wrapper around a method of a class, unless one was put there before.

    Args:
        owner: the class.
        name: the method's.
        wrapper: takes the method as it is, others' wrappers included; returns what replaces it.
    """
    if mark(owner, name):
        original = getattr(owner, name)
        setattr(owner, name, wraps(original)(wrapper(original)))


def mark(owner: Any, name: str) -> bool:
    """Note that a method is changed; returns False if it was before."""
    known = vars(owner).get(_MARK, frozenset())
    if name in known:
        return False
    setattr(owner, _MARK, known | {name})
    return True


def _names_in(owner: Any) -> set[str]:
    """Return the names of attributes that the methods of a class use."""
    names: set[str] = set()
    for base in inspect.getmro(owner):
        for function in vars(base).values():
            code = getattr(inspect.unwrap(function), "__code__", None)
            if isinstance(code, CodeType):
                names.update(code.co_names)
    return names


def _takes(function: Any, names: Sequence[str]) -> bool:
    """Return whether a method can be called with parameters of these names, in this order."""
    if not callable(function):
        return False
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        # Written in C, as an agent's wrapper may be: its caller knows best.
        return True
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    parameters = parameters[1:]
    found = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    more = parameters[len(names) :]
    return found[: len(names)] == list(names) and all(
        p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in more
    )
