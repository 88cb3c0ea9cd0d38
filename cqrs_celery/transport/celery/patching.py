"""Change methods of Celery, each once, and check first that they exist.

Monitoring agents wrap the same methods, before or after. So a change is noted on the class that has
the method, under a name of our own: any wrapper has a `__wrapped__`.
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

#: The versions of Celery and Kombu that these changes fit; pyproject.toml says the same.
SUPPORTED = "celery>=5.7,<5.8 and kombu>=5.7,<5.8"

#: The attribute of a class that holds the names of its methods that were changed here.
_MARK = "__cqrs_celery_patches__"


class Needed(NamedTuple):
    """A name in Celery or Kombu that is changed or used.

    Attributes:
        module: the module that has it; a module that this process has not imported is not checked.
        name: the name of a class, or of its method or attribute, as in "Request.on_retry".
        parameters: the parameters that a method is called with; None for an attribute, which any
            method of the class may set.
    """

    module: str
    name: str
    parameters: tuple[str, ...] | None = None

    def __str__(self) -> str:
        if self.parameters is None:
            return f"{self.module}.{self.name}"
        return f"{self.module}.{self.name}({', '.join(self.parameters)})"

    def is_there(self) -> bool:
        """Return whether it exists in the needed form; True if its module is not imported."""
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
    """Yield methods of a class, each with the parameters that it is called with besides `self`."""
    for name, names in parameters.items():
        yield Needed(module, f"{owner}.{name}", tuple(names))


def attributes(module: str, owner: str, *names: str) -> Iterator[Needed]:
    """Yield attributes of a class or of its instances."""
    for name in names:
        yield Needed(module, f"{owner}.{name}")


def check(needed: Iterable[Needed]) -> None:
    """Check that everything that is changed or used exists.

    Args:
        needed: the names to check.

    Raises:
        UnsupportedCelery: the installed version lacks one of them.
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
        name: the method's name.
        wrapper: gets the present method, with any wrappers of others; returns its replacement.
    """
    if mark(owner, name):
        original = getattr(owner, name)
        setattr(owner, name, wraps(original)(wrapper(original)))


def mark(owner: Any, name: str) -> bool:
    """Note that a method is changed; return False if that was noted before."""
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
        # It is written in C, as an agent's wrapper may be: assume that it fits.
        return True
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return True
    parameters = parameters[1:]
    found = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    more = parameters[len(names) :]
    return found[: len(names)] == list(names) and all(
        p.default is not p.empty or p.kind is p.VAR_KEYWORD for p in more
    )
