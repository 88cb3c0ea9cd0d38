"""Turn an aggregate's state into bytes, and bytes into an aggregate with that state.

The state is the values of the attributes that the class annotates, written by msgspec:

    class InventoryItem(Aggregate, snapshot_every=100):
        name: str = ""
        counts: dict[str, int] = {}

A class with more state, or with state that should be kept in another form, defines two methods:

    def to_snapshot(self) -> State: ...
    def from_snapshot(self, state: State) -> None: ...

State that would not come back unchanged is refused when it is captured, not when it is restored:
an attribute that is not annotated, a value of another type than its annotation, a type that JSON
changes. The bytes carry a checksum of the annotations' shape; bytes of another shape are refused.
Restored values are checked against the annotations.
"""

from __future__ import annotations

import typing
import zlib
from collections.abc import Mapping, Sequence
from datetime import datetime, time
from typing import Any, ClassVar, Final, TypeVar, get_origin

import msgspec
from msgspec import UNSET, UnsetType

from ..errors import RegistrationError, SnapshotError
from ..messages.forms import omits_defaults
from ..messages.registry import where
from ..messages.sameness import Difference, difference
from .aggregate import Aggregate
from .lifecycle import build

A = TypeVar("A", bound=Aggregate)

#: The methods of a class that defines its state itself.
TO, FROM = "to_snapshot", "from_snapshot"

#: The parts of a JSON schema that do not affect the bytes.
_WORDS: Final = ("default", "description", "title")


class _Kept(msgspec.Struct):
    """The captured form: the state, the shape of its class, and the events that it comes from.

    Earlier releases did not keep `known`; see `Ledger`.
    """

    shape: int
    state: msgspec.Raw
    known: list[tuple[int, str]] = []


_encode = msgspec.json.Encoder().encode
_decode_kept = msgspec.json.Decoder(_Kept).decode


class StateCodec:
    """A codec that captures and restores the state of one class of aggregates.

    Args:
        cls: the aggregate class.

    Raises:
        RegistrationError: an annotation can't be read, or msgspec has no form for it; or the class
            has only one of the two methods.
    """

    def __init__(self, cls: type[Aggregate]) -> None:
        self._cls = cls
        self._has_methods = _has_methods(cls)
        self._fields: tuple[str, ...] = ()
        if self._has_methods:
            kept = _type_of_own_state(cls)
        else:
            hints = _hints(cls)
            self._fields = tuple(hints)
            kept = _struct_of(cls, hints)
        try:
            self._decode = msgspec.json.Decoder(kept).decode
            # A default that is not written into the bytes is a part of their meaning.
            words = _WORDS[1:] if omits_defaults(kept) else _WORDS
            shape = _encode(_bare(msgspec.json.schema(kept), words))
        except (TypeError, ValueError) as error:
            said = str(error).splitlines()[-1]
            raise RegistrationError(
                f"the state of {where(cls)} can't be kept in a snapshot: {said}. Annotate its"
                f" attributes with types that msgspec has a form for, or give it {TO} and {FROM}."
            ) from error
        self._type = kept
        self._shape = zlib.crc32(shape)

    def capture(self, aggregate: Aggregate) -> bytes:
        """Return the state of an aggregate without pending events, as bytes.

        Raises:
            SnapshotError: the state would not come back unchanged, or events are pending.
        """
        if aggregate.pending_events:
            raise _not_captured(aggregate, "it has events that are not committed")
        state = self._state_of(aggregate)
        try:
            data = _encode(state)
            found = self._decode(data)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _not_captured(aggregate, str(error)) from error
        self._check_same(aggregate, state, found)
        return _encode(_Kept(self._shape, msgspec.Raw(data), aggregate.__ledger__.known))

    def restore(self, id: str, version: int, data: bytes) -> Aggregate:
        """Return an aggregate in a captured state.

        Args:
            id: the aggregate's id.
            version: the version at which the state was captured.
            data: the bytes that `capture` returned.

        Raises:
            SnapshotError: the class has changed its shape since, or the bytes are damaged.
            Exception: any error that the class's own method raised.
        """
        name = f"{self._cls.__aggregate_type__}-{id}"
        try:
            kept = _decode_kept(data)
            if kept.shape != self._shape:
                raise SnapshotError(
                    f"the state of {name} was captured when its class had other attributes",
                    aggregate=name,
                )
            state = self._decode(kept.state)
        except (ValueError, RecursionError) as error:
            raise SnapshotError(
                f"the state of {name} at version {version} can't be read: {error}", aggregate=name
            ) from error
        aggregate = build(self._cls, id)
        if self._has_methods:
            getattr(aggregate, FROM)(state)
        else:
            held = vars(aggregate)
            for field in self._fields:
                value = getattr(state, field)
                if value is not UNSET:
                    held[field] = value
                elif field in held:
                    del held[field]
        ledger = aggregate.__ledger__
        ledger.version = version
        if kept.known and kept.known[-1][0] == version:
            ledger.known = kept.known
        return aggregate

    def check(self) -> None:
        """Check the attributes of a new aggregate, before any snapshot is taken.

        Raises:
            RegistrationError: the aggregate has attributes that are not annotated.
        """
        if self._has_methods:
            return
        strays = _strays(build(self._cls, "new"), self._fields)
        if strays:
            raise RegistrationError(
                f"{where(self._cls)} has snapshots, but also attributes that it does not annotate:"
                f" {', '.join(strays)}. Annotate them, as in `{strays[0]}: list[str] = []`, or give"
                f" the class {TO} and {FROM}."
            )

    def _state_of(self, aggregate: Aggregate) -> Any:
        if self._has_methods:
            return getattr(aggregate, TO)()
        strays = _strays(aggregate, self._fields)
        if strays:
            raise _not_captured(
                aggregate, f"it has attributes that its class does not annotate: {strays}"
            )
        held = vars(aggregate)
        return self._type(**{field: held.get(field, UNSET) for field in self._fields})

    def _check_same(self, aggregate: Aggregate, state: Any, found: Any) -> None:
        of_method = f"the result of {TO}" if self._has_methods else ""
        lost = difference(state, found, of_method, exact=True)
        if lost is not None:
            raise _not_captured(aggregate, _told(lost))


def codec_of(cls: type[Aggregate]) -> StateCodec:
    """Return the codec of a class; it is created at its first use.

    Raises:
        RegistrationError: see `StateCodec`.
    """
    codec = vars(cls).get("__state_codec__")
    if codec is None:
        codec = StateCodec(cls)
        type.__setattr__(cls, "__state_codec__", codec)
    return typing.cast(StateCodec, codec)


def capture(aggregate: Aggregate) -> bytes:
    """Return an aggregate's state as bytes; see `StateCodec.capture`.

    Raises:
        SnapshotError: the state would not come back unchanged, or events are pending.
        RegistrationError: the class's state can't be kept at all.
    """
    return codec_of(type(aggregate)).capture(aggregate)


def restore(cls: type[A], id: str, version: int, data: bytes) -> A:
    """Return an aggregate in a captured state; see `StateCodec.restore`.

    Raises:
        SnapshotError: the bytes don't fit the class.
        RegistrationError: the class's state can't be kept at all.
    """
    return typing.cast(A, codec_of(cls).restore(id, version, data))


def as_made(aggregate: A) -> A:
    """Return another instance, in the newest known state that only events have made.

    This is the state `made` of its ledger, at `made_version`; without one, a new aggregate.

    Raises:
        SnapshotError: the bytes don't fit the class.
    """
    cls, ledger = type(aggregate), aggregate.__ledger__
    if ledger.made is None:
        return build(cls, ledger.id)
    return restore(cls, ledger.id, ledger.made_version, ledger.made)


def _has_methods(cls: type[Aggregate]) -> bool:
    has = [name for name in (TO, FROM) if callable(getattr(cls, name, None))]
    if len(has) == 1:
        other = FROM if has == [TO] else TO
        raise RegistrationError(
            f"{where(cls)} has {has[0]}, but not {other}; expected both or neither"
        )
    return bool(has)


def _type_of_own_state(cls: type[Aggregate]) -> Any:
    hints = _resolved(cls, getattr(cls, TO))
    if "return" not in hints:
        raise RegistrationError(
            f"{where(cls)} does not annotate the return type of {TO}, by which the state is read"
            f" again; expected: def {TO}(self) -> State"
        )
    return hints["return"]


def _hints(cls: type[Aggregate]) -> dict[str, Any]:
    """Return the annotated attributes of a class and its bases, with their types."""
    for base in cls.__mro__[: cls.__mro__.index(Aggregate)]:
        if vars(base).get("__slots__"):
            raise RegistrationError(
                f"{where(base)} has __slots__, which snapshots don't include; give it {TO} and"
                f" {FROM}"
            )
    return {
        name: hint
        for name, hint in _resolved(cls, cls).items()
        if not name.startswith("__") and get_origin(hint) is not ClassVar and hint is not ClassVar
    }


def _resolved(cls: type[Aggregate], annotated: Any) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(annotated, include_extras=True)
    except (NameError, TypeError, SyntaxError) as error:
        raise RegistrationError(
            f"the annotations of {where(cls)} can't be read, which its snapshots need: {error}"
        ) from error


def _struct_of(cls: type[Aggregate], hints: Mapping[str, Any]) -> type[msgspec.Struct]:
    fields = [(name, typing.Union[hint, UnsetType], UNSET) for name, hint in hints.items()]  # noqa: UP007
    return msgspec.defstruct(f"{cls.__name__}State", fields, kw_only=True)


def _strays(aggregate: Aggregate, fields: tuple[str, ...]) -> list[str]:
    return sorted(set(vars(aggregate)) - {"__ledger__", *fields})


def _not_captured(aggregate: Aggregate, why: str) -> SnapshotError:
    name = f"{aggregate.__aggregate_type__}-{aggregate.id}"
    return SnapshotError(
        f"the state of {name} at version {aggregate.version} can't be kept: {why}", aggregate=name
    )


def _told(lost: Difference) -> str:
    name = f"a key of {lost.path}" if lost.is_key else lost.path
    kinds = [f"{one!r:.100} of the type {type(one).__name__}" for one in (lost.sent, lost.back)]
    text = f"{name} is {kinds[0]}, which would come back as {kinds[1]}"
    if isinstance(lost.sent, (datetime, time)) and lost.sent.tzinfo is not None:
        text += ", with a fixed offset. Keep it in UTC, and the time zone's name separately"
    return text


def _bare(schema: Any, words: Sequence[str]) -> Any:
    """Return a JSON schema without these keys, whose values may change while the bytes don't."""
    if isinstance(schema, list):
        return [_bare(one, words) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: _bare(one, words) for name, one in value.items()}
        if key in ("properties", "$defs")
        else _bare(value, words)
        for key, value in schema.items()
        if key not in words
    }
