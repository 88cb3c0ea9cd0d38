"""Unknown fields: those that a message was stored with but its class does not have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

#: The attribute of a message that holds them.
UNKNOWN: Final = "__unknown_fields__"


def unknown_fields_of(message: Any) -> Mapping[str, Any]:
    """Return the fields, by name, that a message was stored with but its class does not have.

    The result is empty unless the class has `unknown_fields="keep"`. A copy of the message that was
    made with other values has none.
    """
    found: Mapping[str, Any] = getattr(message, UNKNOWN, _NOTHING)
    return found


def with_unknown_fields(message: Any, unknown: Mapping[str, Any]) -> Any:
    """Return a message with its unknown fields attached; its class must keep them."""
    if unknown:
        vars(message)[UNKNOWN] = MappingProxyType(dict(unknown))
    return message
