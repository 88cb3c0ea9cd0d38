"""The aggregate classes by type. A type names streams, so no two classes share one by accident."""

from __future__ import annotations

from typing import Any

from ..errors import DuplicateRegistration, RegistrationError
from ..messages.registry import is_same, where

#: The classes of this process by their type, without those that are an alias of another class.
_owners: dict[str, type[Any]] = {}


def claim(cls: type[Any], name: str, alias_of: type[Any] | None) -> None:
    """Register a class under its aggregate type, or check that an alias has its class's type.

    The same class of the same module replaces the former: a reloaded module is not a conflict.

    Args:
        cls: the class.
        name: its aggregate type.
        alias_of: the class whose type it shares; None if it is not an alias.

    Raises:
        DuplicateRegistration: another class has the type; the text names both.
        RegistrationError: the class is an alias of a class with another type.
    """
    if alias_of is not None:
        _check_alias(cls, name, alias_of)
        return
    other = _owners.get(name)
    if other is not None and not is_same(other, cls):
        raise DuplicateRegistration(
            f"the aggregate type {name!r} is claimed by {where(other)} and by {where(cls)}: their"
            " aggregates would share streams. Give one of them another name: class"
            f" {cls.__name__}(…, name='…'). If both are meant to read the same streams, declare"
            f" it: class {cls.__name__}(…, alias_of={other.__name__})"
        )
    _owners[name] = cls


def _check_alias(cls: type[Any], name: str, alias_of: type[Any]) -> None:
    if name != getattr(alias_of, "__aggregate_type__", None):
        raise RegistrationError(
            f"{where(cls)} has the type {name!r}, and alias_of = {alias_of!r}; expected an"
            " aggregate class, whose type it takes. Remove its own name."
        )
