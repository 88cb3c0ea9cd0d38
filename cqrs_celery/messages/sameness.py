"""Find out whether a value came back unchanged from JSON, and if not, what has changed.

Unchanged means equal in every part, and of the same structure. JSON and the declared types may
replace a type by one whose values are equal, such as an int given for a float, or a member of an
`IntEnum` given for an int. With `exact`, the types must be the same too.

A class's own `__eq__` is not used here: a difference that it ignores would be lost unnoticed.
"""

from __future__ import annotations

import dataclasses
import enum
import marshal
import pickle
from collections.abc import Iterable
from datetime import datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from .unknown import UNKNOWN

#: Types whose `==` compares the value completely.
_LEAVES: Final = frozenset({str, int, bool, bytes, type(None)})

#: Types whose values may come back as equal values of another type, unless `exact` is set.
_NARROWED: Final = (str, int, float, Decimal, bytes, bytearray, memoryview)

_SETS: Final = (set, frozenset)

_MISSING: Final = object()

_encode = msgspec.json.Encoder().encode


class Difference(NamedTuple):
    """The first part of a value that would come back changed.

    Attributes:
        path: its place in the value, such as `lines[0].price`.
        sent: the part as it was given.
        back: the part as it would come back.
        is_key: whether the part is a key of the dict at this place.
    """

    path: str
    sent: Any
    back: Any
    is_key: bool = False


def difference(sent: Any, back: Any, path: str = "", *, exact: bool = False) -> Difference | None:
    """Return the first difference between a written value and the value read; None if none.

    Args:
        sent: the value that was written.
        back: the value that was read.
        path: the place of both.
        exact: whether all types must be the same, and the order of dicts, and whether a time's zone
            has a fixed offset.
    """
    kind: Any = type(sent)
    is_same_type = kind is type(back)
    if is_same_type and kind in _LEAVES:
        return None if sent == back else Difference(path, sent, back)
    if exact and not is_same_type:
        return Difference(path, sent, back)
    if is_same_type and (fields := _fields_of(kind)):
        return _of_fields(fields, sent, back, path, exact)
    if isinstance(sent, enum.Enum):
        same = sent is back or (isinstance(sent, _NARROWED) and _is_equal(sent.value, back))
        return None if same else Difference(path, sent, back)
    if isinstance(sent, dict) and isinstance(back, dict):
        return _of_dicts(sent, back, path, exact)
    if isinstance(sent, (list, tuple)) and isinstance(back, (list, tuple)):
        if isinstance(sent, list) is not isinstance(back, list):
            return Difference(path, sent, back)
        if _is_identical(sent, back, exact):
            return None
        names = getattr(sent, "_fields", None) or range(len(sent))
        return _of_parts(names, sent, back, path, exact)
    if isinstance(sent, _SETS) and isinstance(back, _SETS):
        return _of_sets(sent, back, path, exact)
    if not is_same_type:
        same = isinstance(sent, _NARROWED) and _is_equal(sent, back)
        return None if same else Difference(path, sent, back)
    if isinstance(sent, (datetime, time)):
        return None if _is_same_time(sent, back, exact) else Difference(path, sent, back)
    if kind is Decimal:
        # Compared as texts, since NaN equals nothing.
        return None if str(sent) == str(back) else Difference(path, sent, back)
    return None if _is_equal(sent, back) else Difference(path, sent, back)


def _is_identical(sent: Any, back: Any, exact: bool) -> bool:
    """Return True if values of Python's own types are known to be the same, including their types.

    `marshal` writes such values, and no others, with their types and the order of dicts, so it
    compares large values quickly. Its version 2 writes no references, which would depend on other
    holders of a part.
    """
    try:
        if marshal.dumps(sent, 2) != marshal.dumps(back, 2):
            return False
        # marshal writes a bytearray as bytes; pickle names its type.
        return not exact or b"bytearray" not in pickle.dumps(sent, 2)
    except (TypeError, ValueError, RecursionError):
        return False


def _is_equal(sent: Any, back: Any) -> bool:
    try:
        return bool(sent == back)
    except Exception:  # noqa: BLE001  a comparison may raise anything, like that of Decimal("sNaN")
        return False


def _is_same_time(sent: Any, back: Any, exact: bool) -> bool:
    if (sent.tzinfo is None) is not (back.tzinfo is None):
        return False
    if sent.utcoffset() != back.utcoffset():
        return False
    if sent.replace(tzinfo=None) != back.replace(tzinfo=None):
        return False
    if sent.tzinfo is None:
        return bool(sent.fold == back.fold)
    # A zone whose offset changes has no fixed one (None); after JSON, the offset is fixed.
    return not exact or bool(sent.tzinfo.utcoffset(None) == back.tzinfo.utcoffset(None))


def _of_dicts(sent: Any, back: Any, path: str, exact: bool) -> Difference | None:
    if len(sent) != len(back):
        return Difference(path, sent, back)
    if _is_identical(sent, back, exact):
        return None
    for (key, value), (key_back, value_back) in zip(sent.items(), back.items(), strict=True):
        if difference(key, key_back, exact=exact) is not None:
            return Difference(path, key, key_back, is_key=True)
        found = difference(value, value_back, exact=exact)
        if found is not None:
            return _below(found, f"{path}[{key!r}]")
    return None


def _of_sets(sent: Any, back: Any, path: str, exact: bool) -> Difference | None:
    if len(sent) != len(back):
        return Difference(path, sent, back)
    # Members are matched by their JSON: a time in an hour that its zone repeats equals no time of
    # another zone.
    by_json = {_encode(one): one for one in back}
    for one in sent:
        other = by_json.get(_encode(one), _MISSING)
        if other is _MISSING and not exact and isinstance(one, _NARROWED) and one in back:
            continue
        candidates = back if other is _MISSING else (other,)
        if all(difference(one, each, exact=exact) is not None for each in candidates):
            return Difference(path, sent, back)
    return None


def _of_parts(
    steps: Iterable[str | int], sent: Any, back: Any, path: str, exact: bool
) -> Difference | None:
    if len(sent) != len(back):
        return Difference(path, sent, back)
    for step, one, other in zip(steps, sent, back, strict=True):
        found = difference(one, other, exact=exact)
        if found is not None:
            place = f"[{step}]" if isinstance(step, int) else f".{step}"
            return _below(found, (path + place).lstrip("."))
    return None


def _of_fields(
    fields: Iterable[str], sent: Any, back: Any, path: str, exact: bool
) -> Difference | None:
    for name in fields:
        one, other = getattr(sent, name, _MISSING), getattr(back, name, _MISSING)
        # The first check of `difference`, without a call, since there may be very many fields.
        if type(one) in _LEAVES and type(one) is type(other) and one == other:
            continue
        found = difference(one, other, exact=exact)
        if found is not None:
            return _below(found, f"{path}.{name}" if path else name)
    return None


def _below(found: Difference, path: str) -> Difference:
    is_field = found.path and not found.path.startswith("[")
    return found._replace(path=f"{path}.{found.path}" if is_field else path + found.path)


@lru_cache(maxsize=256)
def _fields_of(cls: Any) -> tuple[str, ...]:
    if issubclass(cls, msgspec.Struct):
        fields = tuple(cls.__struct_fields__)
        return (*fields, UNKNOWN) if getattr(cls, "__keeps_unknown__", False) else fields
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls))
    return tuple(field.name for field in getattr(cls, "__attrs_attrs__", ()))
