"""Check, when a message class is created, that JSON can hold the declared types of its fields.

If a type is not defined yet, such as one further down in the module, the check happens when a
worker starts, or at the message's first use.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import inspect

from ..errors import RegistrationError
from ..mutability import annotated_names, is_frozen, is_mutable
from ..nesting import MADE_LEVELS
from .markers import MARKERS
from .registry import where

#: The types that a field may have, as errors name them.
ACCEPTED: Final = (
    "str, int, float, bool, bytes, Decimal, datetime, date, time, timedelta, UUID, Enum, list,"
    " dict, set, tuple, a NamedTuple, a dataclass or a msgspec.Struct"
)

#: The types of keys that can be read back from the text that JSON makes of them.
_KEYS: Final = (
    inspect.StrType, inspect.IntType, inspect.FloatType, inspect.EnumType, inspect.LiteralType,
    inspect.DateTimeType, inspect.DateType, inspect.TimeType, inspect.TimeDeltaType,
    inspect.UUIDType, inspect.DecimalType, inspect.BytesType, inspect.AnyType,
)  # fmt: skip


@dataclass
class Form:
    """The properties of a class's messages in JSON, as its declared types determine them.

    Attributes:
        may_have_marked: whether a message may contain an object that Celery's JSON reads as
            something else.
        may_be_deep: whether a message may be nested deeper than is accepted.
        times: the fields whose `==` ignores `fold`: whether a time without a zone is in the second
            of two repeated hours.
        compared: the fields whose `==` may ignore more differences, since a class in them defines
            its own.
        may_change: whether a part of a message, such as a list, can be changed in place.
    """

    may_have_marked: bool = False
    may_be_deep: bool = False
    times: tuple[str, ...] = ()
    compared: tuple[str, ...] = ()
    may_change: bool = False
    _open: list[Any] = field(default_factory=list)


def check_fields(cls: Any, namespace: Mapping[str, Any]) -> None:
    """Check that all intended fields are fields, and that messages share no mutable default.

    Args:
        cls: a message class.
        namespace: the names that its body defined, with their values.

    Raises:
        RegistrationError: a name has no type, or a default can be changed; the text names the
            class, the field, and what to write.
    """
    annotated = annotated_names(cls)
    for name, value in namespace.items():
        if name in annotated or name.startswith("_") or name.isupper():
            continue
        if hasattr(value, "__get__") or callable(value):
            continue
        raise RegistrationError(
            f"{where(cls)} has {name} = {value!r} without a type, so it is not a field. Write"
            f" `{name}: {type(value).__name__} = {value!r}`, or, for a constant of the class,"
            f" `{name}: ClassVar[{type(value).__name__}] = {value!r}`."
        )
    defaults = cls.__struct_defaults__
    for name, default in zip(cls.__struct_fields__[-len(defaults) :], defaults, strict=False):
        if is_mutable(default):
            raise mutable_default(where(cls), name, default)


def mutable_default(place: str, name: str, default: Any) -> RegistrationError:
    """Return the error for a default that all messages of a class would share."""
    return RegistrationError(
        f"{place} has the default {default!r} for its field {name!r}. All its messages would share"
        f" it, and each could change it. Write `{name}: … = msgspec.field(default_factory=lambda:"
        f" {default!r})`, or make its class frozen."
    )


def explained(cls_name: str, module: str, namespace: Mapping[str, Any], error: TypeError) -> Any:
    """Return the error for a class that msgspec refuses to create.

    Args:
        cls_name: the name of the class.
        module: the name of its module.
        namespace: the names that its body defined, with their values.
        error: the error that msgspec raised.
    """
    place = f"{module}.{cls_name}"
    if "as a default value is unsafe" in str(error):
        for name, default in namespace.items():
            # msgspec gives each message an empty collection of its own.
            is_copied = isinstance(default, (list, dict, set, bytearray)) and not default
            if not name.startswith("_") and is_mutable(default) and not is_copied:
                return mutable_default(place, name, default)
    return RegistrationError(f"{place} can't be made a message class: {error}")


def form_of(cls: Any) -> Form:
    """Return the properties of a class's messages in JSON, from its declared types.

    Raises:
        RegistrationError: a field's type has no form in JSON, or the class is generic; the text
            names the field, and what to write.
        NameError: a type is not defined yet.
    """
    if getattr(cls, "__parameters__", ()):
        names = ", ".join(one.__name__ for one in cls.__parameters__)
        raise RegistrationError(
            f"{where(cls)} is generic in {names}, which is not stored: its values would come back"
            " as plain JSON. Write a class for each type that you need, without Generic."
        )
    form = Form(may_have_marked=bool(cls.__keeps_unknown__))
    try:
        msgspec.json.Decoder(cls)
        described = inspect.type_info(cls)
    except TypeError as error:
        name, why = _refused_field(cls, error)
        raise RegistrationError(
            f"{where(cls)} has the field {name!r} of a type that can't be read from JSON: {why}"
        ) from error
    levels = _walk(cls, described, "", form)
    form.may_be_deep = form.may_be_deep or levels > MADE_LEVELS
    form.may_change = any(map(_is_mutable, _all_parts(cls)))
    has_own = _has_own_equality(described)
    for one in getattr(described, "fields", ()):
        if not has_own and _is_moment(one.type):
            form.times += (one.name,)
        elif has_own or _is_compared(one.type, []):
            form.compared += (one.name,)
    return form


def _is_moment(described: Any) -> bool:
    parts = described.types if isinstance(described, inspect.UnionType) else (described,)
    return all(isinstance(one, (inspect.DateTimeType, inspect.NoneType)) for one in parts) and any(
        isinstance(one, inspect.DateTimeType) for one in parts
    )


def _is_compared(described: Any, above: list[Any]) -> bool:
    """Return whether `==` may treat different values of a type as equal."""
    if any(described is one for one in above):
        return False
    # This includes a time whose zone's offset depends on the day, which JSON loses.
    if isinstance(described, (inspect.DateTimeType, inspect.TimeType)):
        return True
    if _has_own_equality(described):
        return True
    return any(_is_compared(part, [*above, described]) for _, part in _parts(described, ""))


def _has_own_equality(described: Any) -> bool:
    if isinstance(described, inspect.StructType):
        return _class_of(described).__eq__ is not msgspec.Struct.__eq__
    if isinstance(described, inspect.NamedTupleType):
        return _class_of(described).__eq__ is not tuple.__eq__
    # An attrs class is described as a dataclass.
    return isinstance(described, inspect.DataclassType) and not _compares_all(_class_of(described))


def _compares_all(cls: Any) -> bool:
    """Return whether a dataclass has the `__eq__` that Python generates, over all its fields."""
    fields = getattr(cls, "__dataclass_fields__", {}).values()
    code = getattr(cls.__eq__, "__code__", None)
    return (
        code is not None
        and code.co_filename == "<string>"
        # Only those of the fields that it compares are there.
        and {*code.co_names} - {"NotImplemented"} == {"__class__", *(one.name for one in fields)}
    )


def _class_of(described: Any) -> Any:
    return typing.get_origin(described.cls) or described.cls


def formless_part(hint: Any) -> Any:
    """Return the class within a type that JSON has no form for; None if there is none.

    Raises:
        TypeError: the type as a whole can't be read from JSON, such as a union whose members JSON
            can't tell apart.
    """
    msgspec.json.Decoder(hint)
    found = next(filter(_is_formless, _all_parts(hint)), None)
    return None if found is None else getattr(found, "cls", type(found))


def omits_defaults(hint: Any) -> bool:
    """Return whether a struct within a type omits fields with default values when it is written."""
    return any(
        isinstance(one, inspect.StructType) and _class_of(one).__struct_config__.omit_defaults
        for one in _all_parts(hint)
    )


def _all_parts(hint: Any) -> Iterator[Any]:
    """Yield a type and all its parts, the type first, each part once."""
    waiting: list[Any] = [inspect.type_info(hint)]
    seen: list[Any] = []
    while waiting:
        described = waiting.pop()
        if any(described is one for one in seen):
            continue
        seen.append(described)
        yield described
        waiting += [part for _, part in _parts(described, "")]


def _is_mutable(described: Any) -> bool:
    if isinstance(described, (inspect.StructType, inspect.DataclassType)):
        return not is_frozen(_class_of(described))
    return isinstance(described, _MUTABLE)


_MUTABLE: Final = (
    inspect.ListType, inspect.SetType, inspect.DictType, inspect.TypedDictType, inspect.AnyType,
    inspect.CustomType, inspect.ByteArrayType,
)  # fmt: skip


def _is_formless(described: Any) -> bool:
    is_custom = isinstance(described, inspect.CustomType) and described.cls is not object
    return is_custom or isinstance(described, (inspect.RawType, inspect.ExtType))


def _walk(cls: Any, described: Any, path: str, form: Form) -> int:
    """Check a type and all its parts; return the number of levels of its nesting."""
    if _is_formless(described):
        raise _no_form(cls, path, getattr(described, "cls", type(described)))
    if isinstance(described, (inspect.AnyType, inspect.CustomType)):
        form.may_have_marked = form.may_be_deep = True
        return 1
    if isinstance(described, inspect.DictType):
        form.may_have_marked = True
        _check_key(cls, path, described.key_type)
    if isinstance(described, _WITH_FIELDS):
        form.may_have_marked |= {one.encode_name for one in described.fields} >= MARKERS
    if isinstance(described, inspect.StructType) and form._open:
        _check_nested(cls, path, _class_of(described))
    if any(described is one for one in form._open):
        form.may_be_deep = True
        return 1
    form._open.append(described)
    levels = [_walk(cls, part, place, form) for place, part in _parts(described, path)]
    form._open.pop()
    is_union = isinstance(described, inspect.UnionType)
    is_nested = not is_union and isinstance(described, _NESTING)
    return max(levels, default=0) + is_nested


_WITH_FIELDS: Final = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType)

_NESTING: Final = (
    inspect.CollectionType, inspect.TupleType, inspect.DictType, inspect.StructType,
    inspect.DataclassType, inspect.NamedTupleType, inspect.TypedDictType,
)  # fmt: skip


def _parts(described: Any, path: str) -> Iterator[tuple[str, Any]]:
    for one in getattr(described, "fields", ()):
        yield f"{path}.{one.name}".lstrip("."), one.type
    for part in getattr(described, "types", ()):
        yield path, part
    for part in getattr(described, "item_types", ()):
        yield f"{path}[]", part
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(described, name):
            yield f"{path}[]", getattr(described, name)


def _check_nested(cls: Any, path: str, nested: Any) -> None:
    if nested.__struct_config__.omit_defaults:
        raise RegistrationError(
            f"{where(cls)} has the field {path!r} of the type {nested.__qualname__}, which has"
            " omit_defaults = True: a value that was left out would be read as another one once the"
            " default changes. Remove omit_defaults."
        )
    if getattr(nested, "__keeps_unknown__", False):
        raise RegistrationError(
            f"{where(cls)} has the field {path!r} of the type {nested.__qualname__}, which has"
            " unknown_fields='keep': unknown fields are kept only of a whole message, and would be"
            " lost of one inside another. Write a msgspec.Struct for the field, or give the class"
            " another unknown_fields."
        )


def _check_key(cls: Any, path: str, key: Any) -> None:
    kinds = key.types if isinstance(key, inspect.UnionType) else (key,)
    for kind in kinds:
        is_any = isinstance(kind, inspect.CustomType) and kind.cls is object
        if not isinstance(kind, _KEYS) and not is_any:
            raise RegistrationError(
                f"{where(cls)} has a dict in the field {path!r} whose keys are of the type"
                f" {_named(kind)}; keys of JSON objects are texts, from which this type can't be"
                " read back."
                " Use keys of the type str, int, float, Decimal, Enum, date, datetime or UUID, or"
                " write a list of pairs."
            )


def _named(described: Any) -> str:
    cls = getattr(described, "cls", None)
    name = getattr(cls, "__qualname__", type(described).__name__)
    return re.sub("Type$", "", name).lower() if cls is None else name


def _no_form(cls: Any, path: str, kind: Any) -> RegistrationError:
    return RegistrationError(
        f"{where(cls)} has the field {path!r} of the type {kind.__module__}.{kind.__qualname__},"
        f" which has no form in JSON. Use one of {ACCEPTED}."
    )


def _refused_field(cls: Any, error: TypeError) -> tuple[str, str]:
    """Return the field for which no decoder can be made, and the reason."""
    why = str(error).splitlines()[0].removesuffix(" is not supported")
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        if name in cls.__struct_fields__:
            try:
                msgspec.json.Decoder(hint)
            except TypeError as found:
                return name, f"{hint}. {str(found).splitlines()[0]}"
    return "?", why
