"""Find values that can be changed in place, which must not be shared between owners."""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
import uuid
from collections.abc import MutableMapping, MutableSequence, MutableSet
from datetime import date, time, timedelta, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

_MUTABLE: Final = (MutableMapping, MutableSequence, MutableSet)

#: Types whose values can't be changed, and types of objects that stand for code.
_IMMUTABLE: Final = (
    str, bytes, int, float, complex, bool, type(None), range, slice, enum.Enum,
    date, time, timedelta, tzinfo, Decimal, Fraction, uuid.UUID,
    type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.GenericAlias, msgspec.UnsetType,
)  # fmt: skip


def is_mutable(value: Any) -> bool:
    """Return whether a value, or a part of it, can be changed in place.

    An object whose class does not declare this (it is no collection, dataclass, struct or attrs
    class) counts as immutable; `may_be_mutable` counts it as mutable.
    """
    if isinstance(value, _IMMUTABLE):
        return False
    if isinstance(value, _MUTABLE):
        return True
    if isinstance(value, (tuple, frozenset)):
        return any(map(is_mutable, value))
    is_struct = isinstance(value, msgspec.Struct) or dataclasses.is_dataclass(value)
    if is_struct or hasattr(type(value), "__attrs_attrs__"):
        return not is_frozen(type(value)) or any(map(is_mutable, _parts(value)))
    return False


def may_be_mutable(value: Any) -> bool:
    """Return whether a value can be changed in place, or is of a class that declares nothing."""
    if is_mutable(value):
        return True
    known = (*_IMMUTABLE, tuple, frozenset, msgspec.Struct)
    is_known = isinstance(value, known) or dataclasses.is_dataclass(value)
    return not is_known and not hasattr(type(value), "__attrs_attrs__")


def annotated_names(cls: type[Any], *, with_class_variables: bool = True) -> frozenset[str]:
    """Return the names that a class itself annotates, whether or not their types are defined.

    Args:
        cls: the class.
        with_class_variables: whether to include names that are declared as `ClassVar`.
    """
    found: Any = vars(cls).get("__annotations__", {})
    if sys.version_info >= (3, 14):
        import annotationlib

        found = annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return frozenset(
        name for name, hint in found.items() if with_class_variables or "ClassVar" not in str(hint)
    )


def is_frozen(cls: Any) -> bool:
    """Return whether the fields of a struct, dataclass or attrs class can't be reassigned."""
    if issubclass(cls, msgspec.Struct):
        return bool(cls.__struct_config__.frozen)
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is not None:
        return bool(parameters.frozen)
    # A frozen attrs class has a `__setattr__` of attrs', which refuses assignments.
    return "frozen" in getattr(cls.__setattr__, "__qualname__", "")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, msgspec.Struct):
        names = list(value.__struct_fields__)
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
    else:
        names = [field.name for field in type(value).__attrs_attrs__]
    return [getattr(value, name, None) for name in names]
