"""Check a message class's msgspec options: what would break what a message promises is refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ..errors import RegistrationError

#: msgspec's options that a message class may set; the others are fixed, or have another name here.
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

#: Those that are fixed: the value that they have, and why.
FIXED: Final[Mapping[str, tuple[Any, str]]] = {
    "array_like": (False, "fields are stored by name, so that they may come and go"),
    "eq": (True, "messages are values"),
    "forbid_unknown_fields": (False, "unknown_fields='refuse' says so"),
    "frozen": (True, "what was sent or recorded never changes"),
    "kw_only": (True, "fields are given by name, so that their order may change"),
    "omit_defaults": (
        False,
        "what is left out would be read as another value once a default changes",
    ),
    "tag": (None, "its name says what it is"),
    "tag_field": (None, "its name says what it is"),
}

#: The class arguments of the messages' own.
OWN: Final = ("name", "version", "aggregate", "key", "aliases", "unknown_fields")


def check_class_options(where: str, options: Mapping[str, Any]) -> None:
    """Check the class arguments that are not the messages' own.

    Args:
        where: names the class in errors.
        options: the arguments.

    Raises:
        RegistrationError: an option is fixed, or there is none of the name.
    """
    for name, value in options.items():
        if name in FIXED:
            check_fixed(where, {name: value})
        elif name not in ACCEPTED:
            raise unknown_argument(where, name, (*OWN, *sorted(ACCEPTED)))


def unknown_argument(where: str, name: str, known: Sequence[str]) -> RegistrationError:
    """Return the error for a class argument that does not exist, with the one that was meant."""
    close = difflib.get_close_matches(name, known, n=1)
    return RegistrationError(
        f"{where} has the class argument {name!r}, which does not exist"
        + (f"; did you mean {close[0]!r}?" if close else ".")
        + f" There are: {', '.join(known)}."
    )


def check_fixed(where: str, values: Mapping[str, Any]) -> None:
    """Check that fixed options have their value, whether given or inherited.

    Raises:
        RegistrationError: one has another.
    """
    for name, value in values.items():
        fixed, why = FIXED[name]
        if value is not fixed:
            raise RegistrationError(
                f"{where} has {name} = {value!r}; a message has {name} = {fixed!r}: {why}."
                " Remove it."
            )
