"""Turn the messages of one class into JSON and back without changing them.

A written message is read again at once and compared with the original. A value that would come back
as another one is refused when it is written, since the mistake is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import msgspec

from ..errors import RegistrationError, UnwritableMessage
from ..nesting import MADE_LEVELS, is_too_deep
from .forms import form_of
from .markers import MARKED, has_marked_object
from .registry import Registry, where
from .sameness import Difference, difference
from .unknown import unknown_fields_of, with_unknown_fields

_encode = msgspec.json.Encoder().encode

#: The most characters of a value that an error shows.
_SHOWN = 120

#: The field that msgspec names in an error: "… - at `$.lines[0]`".
_FIELD: Final = re.compile(r" - at `\$\.(?P<name>\w+)")

#: The errors that msgspec, or a user's class, raises for a value that it can't write or read.
_FAILURES = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)


class Codec:
    """The codec of one message class.

    Args:
        cls: the message class.

    Attributes:
        read: turns bytes of JSON into a message; raises msgspec's errors.
        convert: turns plain values, as Celery's JSON has read them, into a message; raises
            msgspec's errors.

    Raises:
        RegistrationError: a field's type has no form in JSON.
        NameError: a field's type is not defined (yet).
    """

    def __init__(self, cls: Any) -> None:
        form = form_of(cls)
        self.cls = cls
        self.kind: str = getattr(cls, "__kind__", "")
        self._decode = msgspec.json.Decoder(cls).decode
        self._keeps_unknown = bool(cls.__keeps_unknown__)
        self._form = form
        self._convert = partial(msgspec.convert, type=cls, builtin_types=(), str_keys=True)
        keeps = self._keeps_unknown
        self.read: Callable[[Any], Any] = self._read_all if keeps else self._decode
        self.convert: Callable[[Any], Any] = self._convert_all if keeps else self._convert

    def write(self, message: Any) -> tuple[bytes, Any]:
        """Return a message as bytes of JSON, and the message that will be read from them.

        The latter equals the message, has the declared types, and shares no part with it.

        Raises:
            UnwritableMessage: a field holds a value that JSON has no form for, that is not of its
                type, or that would come back as another one; or the message is nested too deep.
        """
        try:
            data = _encode(message)
            copy = self._decode(data)
            if self._keeps_unknown:
                data = self.encode(message)
                copy = self._read_all(data)
        except RecursionError as error:
            raise self._too_deep(message) from error
        except _FAILURES as error:
            raise self._unwritable(_with_field(message, str(error))) from error
        form = self._form
        if form.may_be_deep and is_too_deep(data, MADE_LEVELS):
            raise self._too_deep(message)
        try:
            is_same = copy == message
        except Exception:  # noqa: BLE001  a comparison may raise anything
            is_same = False
        if not is_same:
            self._check_same(difference(message, copy))
        for name in form.compared:
            self._check_same(difference(getattr(message, name), getattr(copy, name), name))
        for name in form.times:
            if getattr(getattr(message, name), "fold", 0):
                self._check_same(difference(getattr(message, name), getattr(copy, name), name))
        if form.may_have_marked and has_marked_object(data):
            raise self._unwritable(f"it holds {MARKED}")
        return data, copy

    def encode(self, message: Any) -> bytes:
        """Return a message as bytes of JSON, unchecked, since it was read or written before."""
        if self._keeps_unknown:
            return _encode({**msgspec.to_builtins(message, str_keys=True), **_rest(message)})
        return _encode(message)

    def keep(self, message: Any) -> Callable[[], Any]:
        """Return a function that returns the message as it is now, whatever changes it later."""
        if not self._form.may_change:
            return lambda: message
        data = self.encode(message)
        return lambda: self.read(data)

    def _read_all(self, data: Any) -> Any:
        return self._convert_all(msgspec.json.decode(data))

    def _convert_all(self, plain: Any) -> Any:
        message = self._convert(plain)
        known = self.cls.__struct_encode_fields__
        unknown = {name: value for name, value in plain.items() if name not in known}
        return with_unknown_fields(message, unknown)

    def _check_same(self, found: Difference | None) -> None:
        if found is not None:
            raise self._unwritable(_told(found))

    def _unwritable(self, why: str) -> UnwritableMessage:
        name, version = _name_of(self.cls)
        return UnwritableMessage(
            f"{name}, version {version}, can't be written as JSON that can be read again: {why}",
            name=name,
            version=version,
        )

    def _too_deep(self, message: Any) -> UnwritableMessage:
        name, version = _name_of(self.cls)
        deep = [repr(field) for field, value in fields_of(message) if _is_deep(value)]
        return UnwritableMessage(
            f"{name}, version {version}, is nested deeper than {MADE_LEVELS} levels of lists and"
            f" objects{', in ' + ', '.join(deep) if deep else ''}. Nothing was sent or stored. Send"
            " a flat form, such as a list of nodes that name their parents.",
            name=name,
            version=version,
        )


def codec_of(cls: Any) -> Codec:
    """Return the codec of a message class; if it was not made with the class, make it now.

    Raises:
        RegistrationError: a field's type has no form in JSON, or is not defined.
    """
    codec: Codec | None = getattr(cls, "__codec__", None)
    if codec is None or codec.cls is not cls:
        try:
            codec = cls.__codec__ = Codec(cls)
        except NameError as error:
            raise RegistrationError(
                f"{where(cls)} has a field whose type is not defined: {error}. Import or define it"
                " in the module of the class, and not only under TYPE_CHECKING."
            ) from error
    return codec


def make_codec(cls: Any) -> None:
    """Make the codec of a new class. If a type is defined further down, leave it to `codec_of`.

    Raises:
        RegistrationError: a field's type has no form in JSON.
    """
    try:
        cls.__codec__ = Codec(cls)
    except NameError:
        cls.__codec__ = None


def check_codecs(registry: Registry) -> None:
    """Make the codecs that could not be made together with their classes. A query needs none.

    Raises:
        RegistrationError: a field's type has no form in JSON, or is not defined.
    """
    for entry in registry.subclasses(object):
        if entry.kind != "query":
            codec_of(entry.cls)


def fields_of(message: Any) -> list[tuple[str, Any]]:
    """Return the names and values of a message's fields, including kept unknown fields."""
    known = [(name, getattr(message, name)) for name in message.__struct_fields__]
    return [*known, *unknown_fields_of(message).items()]


def _rest(message: Any) -> Any:
    return unknown_fields_of(message)


def _name_of(cls: Any) -> tuple[str, int]:
    registered = cls.__registered__
    return registered.name, registered.version


def _is_deep(value: Any) -> bool:
    try:
        return is_too_deep(_encode(value), MADE_LEVELS - 1)
    except RecursionError:
        return True


def _told(found: Difference) -> str:
    sent, back = found.sent, found.back
    holds = "has the key" if found.is_key else "holds"
    text = (
        f"the field {found.path!r} {holds} {_shown(sent)}, which would come back as {_shown(back)}."
    )
    if back is None:
        return f"{text} JSON has no form for it"
    declare = "declare the field with the type of its values"
    if type(sent) is type(back):
        return f"{text} Record a value that JSON can hold, or {declare}"
    return f"{text} Convert it to {type(back).__name__}, or {declare}"


def _with_field(message: Any, why: str) -> str:
    """Return msgspec's error text about a message, preceded by the field in question."""
    names = dict(zip(message.__struct_encode_fields__, message.__struct_fields__, strict=True))
    place = _FIELD.search(why)
    name = names.get(place["name"]) if place else None
    if name is None:
        name = next((one for one, value in fields_of(message) if not _is_encodable(value)), None)
    if name is None:
        return why
    return f"the field {name!r} holds {_shown(getattr(message, name))}: {why}"


def _is_encodable(value: Any) -> bool:
    try:
        _encode(value)
    except _FAILURES:
        return False
    return True


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  such as an int with more digits than Python prints
        text = "a value that can't be shown"
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return f"{text} of the type {type(value).__name__}"
