"""The classes by aggregate type. It names their streams, so no two classes share one unseen."""

from __future__ import annotations

from typing import Any

from ..errors import DuplicateRegistration, RegistrationError
from ..messages.registry import is_same, where

#: The classes of this process by their type; those that are another's alias are not among them.
_owners: dict[str, type[Any]] = {}


def claim(cls: type[Any], name: str, alias_of: type[Any] | None) -> None:
    """Give a class its aggregate type, or, as an alias, that of another class.

    The same module and class again takes the place of the former: a reloaded module is no conflict.

    Args:
        cls: the class.
        name: its type.
        alias_of: the class whose type it has, too; None for none.

    Raises:
        DuplicateRegistration: another class has the type; both are named.
        RegistrationError: it is the alias of a class with another type.
    """
    if alias_of is not None:
        _check_alias(cls, name, alias_of)
        return
    other = _owners.get(name)
    if other is not None and not is_same(other, cls):
        raise DuplicateRegistration(
            f"the aggregate type {name!r} is claimed by {where(other)} and by {where(cls)}: their"
            " aggregates would share streams. Give one of them another name: class"
            f" {cls.__name__}(…, name='…'). If both are meant to read the same streams, say so:"
            f" class {cls.__name__}(…, alias_of={other.__name__})"
        )
    _owners[name] = cls


def _check_alias(cls: type[Any], name: str, alias_of: type[Any]) -> None:
    if name != getattr(alias_of, "__aggregate_type__", None):
        raise RegistrationError(
            f"{where(cls)} has the type {name!r}, and alias_of = {alias_of!r}; expected a class of"
            " aggregates, whose type it takes. Leave its own name out."
        )
