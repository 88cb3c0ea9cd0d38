"""Keep a message as it is while somebody has it who may change what is in its lists and dicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final
from weakref import WeakKeyDictionary

from msgspec import inspect

from .codec import codec_of

#: Types whose values can be changed in place, whatever is in them.
_MUTABLE: Final = (
    inspect.ListType, inspect.SetType, inspect.DictType, inspect.TypedDictType, inspect.AnyType,
    inspect.CustomType, inspect.ByteArrayType, inspect.MemoryViewType,
)  # fmt: skip

_known: WeakKeyDictionary[type[Any], bool] = WeakKeyDictionary()


def kept(message: Any) -> Callable[[], Any]:
    """Return what gives a message as it is now, whatever becomes of its lists and dicts.

    Args:
        message: a command, event or published message that can be written.
    """
    cls = type(message)
    may_change = _known.get(cls)
    if may_change is None:
        may_change = _known[cls] = _may_change(inspect.type_info(cls), [])
    if not may_change:
        return lambda: message
    codec = codec_of(cls)
    data = codec.encode(message)
    return lambda: codec.read(data)


def _may_change(described: Any, above: list[Any]) -> bool:
    if isinstance(described, _MUTABLE):
        return True
    if any(described is one for one in above):
        return False
    if isinstance(described, (inspect.StructType, inspect.DataclassType)) and not _is_frozen(
        described.cls
    ):
        return True
    return any(_may_change(part, [*above, described]) for part in _parts(described))


def _is_frozen(cls: Any) -> bool:
    if hasattr(cls, "__struct_config__"):
        return bool(cls.__struct_config__.frozen)
    parameters = getattr(cls, "__dataclass_params__", None)
    return bool(parameters is not None and parameters.frozen)


def _parts(described: Any) -> Iterator[Any]:
    for field in getattr(described, "fields", ()):
        yield field.type
    for name in ("types", "item_types"):
        yield from getattr(described, name, ())
    for name in ("item_type", "key_type", "value_type"):
        if hasattr(described, name):
            yield getattr(described, name)
