"""Turn an aggregate's state into bytes, and bytes into an aggregate with that state.

The state is what the aggregate holds in the attributes that its class annotates, by msgspec:

    class InventoryItem(Aggregate, snapshot_every=100):
        name: str = ""
        counts: dict[str, int] = {}

A class whose state is more than that, or is not to be kept as it is, says it itself:

    def to_snapshot(self) -> State: ...
    def from_snapshot(self, state: State) -> None: ...

Nothing is captured that would not come back the same: an attribute that is not annotated, a value
of another type than its annotation, a type that JSON changes, are errors when the state is captured
and never when it is restored. What is restored is checked against the annotations, and carries
their shape: bytes of another shape don't fit.
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

#: The methods of a class that says its state itself.
TO, FROM = "to_snapshot", "from_snapshot"

#: What of a JSON schema says nothing about the bytes.
_WORDS: Final = ("default", "description", "title")


class _Kept(msgspec.Struct):
    """The bytes: the state, the shape of its class, and the events that it was made of.

    Earlier versions did not keep `known`; see `Ledger`.
    """

    shape: int
    state: msgspec.Raw
    known: list[tuple[int, str]] = []


_encode = msgspec.json.Encoder().encode
_decode_kept = msgspec.json.Decoder(_Kept).decode


class StateCodec:
    """A codec that captures and restores the state of one class of aggregates.

    Args:
        cls: the class.

    Raises:
        RegistrationError: an annotation can't be read, or msgspec has no form for it; or the class
            has one of the two methods without the other.
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
            # Where a default is not in the bytes, it is a part of what they say.
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
        """Return the state of an aggregate that has nothing pending.

        Raises:
            SnapshotError: it would not come back the same.
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
            id: the aggregate's.
            version: at which it was captured.
            data: what `capture` returned.

        Raises:
            SnapshotError: the class has another shape by now, or the bytes are damaged.
            Exception: whatever the class's own method raised.
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
        """Check the attributes of a new aggregate, long before its first snapshot.

        Raises:
            RegistrationError: it has attributes that are not annotated.
        """
        if self._has_methods:
            return
        strays = _strays(build(self._cls, "new"), self._fields)
        if strays:
            raise RegistrationError(
                f"{where(self._cls)} has snapshots, and attributes that it does not annotate:"
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
        of_method = f"what {TO} returned" if self._has_methods else ""
        lost = difference(state, found, of_method, exact=True)
        if lost is not None:
            raise _not_captured(aggregate, _told(lost))


def codec_of(cls: type[Aggregate]) -> StateCodec:
    """Return the codec of a class; made at its first use.

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
        SnapshotError: it would not come back the same.
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
    """Return another instance, in the state that events alone are known to have made of it.

    That is the one of `made` in its ledger, at `made_version`; without one, a new aggregate.

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
            f"{where(cls)} has {has[0]} without {other}; expected both, or neither"
        )
    return bool(has)


def _type_of_own_state(cls: type[Aggregate]) -> Any:
    hints = _resolved(cls, getattr(cls, TO))
    if "return" not in hints:
        raise RegistrationError(
            f"{where(cls)} does not say what {TO} returns; expected an annotation, by which it is"
            f" read again: def {TO}(self) -> State"
        )
    return hints["return"]


def _hints(cls: type[Aggregate]) -> dict[str, Any]:
    """Return the annotated attributes of a class and its bases, with their types."""
    for base in cls.__mro__[: cls.__mro__.index(Aggregate)]:
        if vars(base).get("__slots__"):
            raise RegistrationError(
                f"{where(base)} has __slots__, which snapshots don't see; give it {TO} and {FROM}"
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
        text += ", with a fixed offset. Keep it in UTC, and the time zone's name beside it"
    return text


def _bare(schema: Any, words: Sequence[str]) -> Any:
    """Return a JSON schema without its words, which may change while the bytes don't."""
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
