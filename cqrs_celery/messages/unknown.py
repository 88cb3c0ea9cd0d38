"""Fields that a message was stored with and that its class does not have."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

#: The attribute of a message that has them.
UNKNOWN: Final = "__unknown_fields__"


def unknown_fields_of(message: Any) -> Mapping[str, Any]:
    """Return what a message was stored with that its class has no field for.

    Empty unless the class has `unknown_fields="keep"`. A copy made with other values has none.
    """
    found: Mapping[str, Any] = getattr(message, UNKNOWN, _NOTHING)
    return found


def with_unknown_fields(message: Any, unknown: Mapping[str, Any]) -> Any:
    """Attach to a message, whose class keeps them, the fields that it has no name for."""
    if unknown:
        vars(message)[UNKNOWN] = MappingProxyType(dict(unknown))
    return message
