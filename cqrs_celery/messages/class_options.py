"""Check a message class's msgspec options; refuse those that would break a message's promises."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import RegistrationError

#: The msgspec options that a message class may set. The others are fixed, or are named differently.
ACCEPTED: Final = frozenset(
    {
        "cache_hash",
        "dict",
        "gc",
        "order",
        "rename",
        "repr_omit_defaults",
        "weakref",
    }
)

#: The fixed options: the value of each, and the reason.
FIXED: Final[Mapping[str, tuple[Any, str]]] = {
    "array_like": (False, "fields are stored by name, so that they may come and go"),
    "eq": (True, "messages are values"),
    "forbid_unknown_fields": (False, "unknown_fields='refuse' says so"),
    "frozen": (True, "what was sent or recorded never changes"),
    "kw_only": (True, "fields are given by name, so that their order may change"),
    "omit_defaults": (
        False,
        "a value that was left out would be read as another one once the default changes",
    ),
    "tag": (None, "its name says what it is"),
    "tag_field": (None, "its name says what it is"),
}

#: The class arguments that messages add to msgspec's.
OWN: Final = ("name", "version", "aggregate", "key", "aliases", "unknown_fields")


def check_class_options(where: str, options: Mapping[str, Any]) -> None:
    """Check the class arguments that are meant for msgspec.

    Args:
        where: names the class in errors.
        options: the arguments, by name.

    Raises:
        RegistrationError: an option is fixed and has another value, or does not exist.
    """
    for name, value in options.items():
        if name in FIXED:
            check_fixed(where, {name: value})
        elif name not in ACCEPTED:
            raise unknown_argument(where, name, (*OWN, *sorted(ACCEPTED)))


def unknown_argument(where: str, name: str, known: Sequence[str]) -> RegistrationError:
    """Return the error for a class argument that does not exist; it names the closest known one.

    Args:
        where: names the class in the error.
        name: the argument that was given.
        known: the arguments that exist.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return RegistrationError(
        f"{where} has the class argument {name!r}, which does not exist"
        + (f"; did you mean {close[0]!r}?" if close else ".")
        + f" There are: {', '.join(known)}."
    )


def check_fixed(where: str, values: Mapping[str, Any]) -> None:
    """Check that fixed options have their fixed value, whether given or inherited.

    Args:
        where: names the class in errors.
        values: the options' values, by name.

    Raises:
        RegistrationError: an option has another value.
    """
    for name, value in values.items():
        fixed, why = FIXED[name]
        if value is not fixed:
            raise RegistrationError(
                f"{where} has {name} = {value!r}; a message has {name} = {fixed!r}: {why}."
                " Remove it."
            )
