"""Find out whether a value came back from JSON as it was, and if not, what has changed.

Same means: equal, and of the same shape. JSON and the declared types may narrow a type whose values
stay equal, as an int given for a float, or a member of an `IntEnum` given for an int.
"""

from __future__ import annotations

import dataclasses
from datetime import datetime, time
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec


class Difference(NamedTuple):
    """The first part of a value that would not come back the same.

    Attributes:
        path: where it stands, as `lines[0].price`.
        sent: the part as it was given.
        back: the part as it would come back.
    """

    path: str
    sent: Any
    back: Any


def difference(sent: Any, back: Any, path: str = "") -> Difference | None:
    """Return the first difference between a value and what has become of it; None without one.

    For where `==` has found them different: it also compares aware datetimes that Python takes for
    different in the hour that a clock set back repeats, Decimals that are no numbers, and classes
    without an `__eq__`.

    Args:
        sent: what was written.
        back: what was read.
        path: where both stand.
    """
    if _is_equal(sent, back):
        return None
    if type(sent) is type(back):
        return _difference_of_parts(sent, back, path)
    return Difference(path, sent, back)


def _is_equal(sent: Any, back: Any) -> bool:
    try:
        return bool(sent == back)
    except Exception:  # noqa: BLE001  a comparison may raise anything, as that of Decimal("sNaN")
        return False


def _difference_of_parts(sent: Any, back: Any, path: str) -> Difference | None:
    if isinstance(sent, (list, tuple)):
        names = getattr(sent, "_fields", None)
        steps = [f"[{i}]" for i in range(len(sent))] if names is None else [f".{n}" for n in names]
        return _first(steps, list(sent), list(back), path, sent, back)
    if isinstance(sent, dict):
        keys = _first([" key"] * len(sent), list(sent), list(back), path, sent, back)
        steps = [f"[{key!r}]" for key in sent]
        return keys or _first(steps, list(sent.values()), list(back.values()), path, sent, back)
    if isinstance(sent, (set, frozenset)):
        rest = list(back)
        is_same = len(sent) == len(back) and all(
            any(difference(one, other) is None for other in rest) for one in sent
        )
        return None if is_same else Difference(path, sent, back)
    if isinstance(sent, (datetime, time)):
        is_same = sent.utcoffset() == back.utcoffset() and (
            sent.replace(tzinfo=None) == back.replace(tzinfo=None)
        )
        return None if is_same else Difference(path, sent, back)
    if isinstance(sent, Decimal):
        return None if str(sent) == str(back) else Difference(path, sent, back)
    fields = _fields_of(sent)
    if fields is None:
        return Difference(path, sent, back)
    values, values_back = ([getattr(one, name) for name in fields] for one in (sent, back))
    return _first([f".{name}" for name in fields], values, values_back, path, sent, back)


def _first(
    steps: list[str], sent: list[Any], back: list[Any], path: str, whole: Any, whole_back: Any
) -> Difference | None:
    if len(sent) != len(back):
        return Difference(path, whole, whole_back)
    for step, one, other in zip(steps, sent, back, strict=True):
        found = difference(one, other, (path + step).lstrip("."))
        if found is not None:
            return found
    return None


def _fields_of(value: Any) -> list[str] | None:
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    if hasattr(type(value), "__attrs_attrs__"):
        return [field.name for field in type(value).__attrs_attrs__]
    return None
