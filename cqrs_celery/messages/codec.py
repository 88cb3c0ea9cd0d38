"""Turn the messages of one class into JSON and back, so that what is read is what was written.

What is written is read again at once, and compared: a value that would come back as another one is
refused where it is written, which is where the mistake is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from ..errors import RegistrationError, UnwritableMessage
from ..nesting import MADE_LEVELS, is_too_deep
from .forms import form_of
from .registry import Registry, where
from .sameness import Difference, difference
from .unknown import unknown_fields_of, with_unknown_fields

_encode = msgspec.json.Encoder().encode

#: Kombu's JSON reads an object of these two keys as a value of a type of its own.
_MARKERS = {"__type__", "__value__"}
_MARKER = b'"__type__"'

#: Characters of a value that an error repeats.
_SHOWN = 120

#: What msgspec, or a user's class, raises about a value that it can't write or read.
_FAILURES = (TypeError, ValueError, OverflowError, msgspec.MsgspecError)


class Codec:
    """The codec of one message class.

    Args:
        cls: the class.

    Attributes:
        read: turns bytes of JSON into a message; raises what msgspec does.
        convert: turns plain values, as Celery's JSON has read them, into a message; the same.

    Raises:
        RegistrationError: a field's type has no form in JSON.
        NameError: a field's type is not defined, or not yet.
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
        """Return a message as bytes of JSON, and what will be read from them.

        That is equal to the message, of the declared types, and shares nothing with it.

        Raises:
            UnwritableMessage: a field holds a value that JSON has no form for, that is not of its
                type, or that would come back as another one; or it is nested too deep.
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
            raise self._unwritable(str(error)) from error
        form = self._form
        if form.may_be_deep and is_too_deep(data, MADE_LEVELS):
            raise self._too_deep(message)
        try:
            is_same = copy == message
        except Exception:  # noqa: BLE001  a comparison may raise anything
            is_same = False
        if not is_same:
            self._check_same(message, copy)
        if form.has_free_objects and _MARKER in data:
            self._check_markers(data)
        return data, copy

    def encode(self, message: Any) -> bytes:
        """Return a message as bytes of JSON, unchecked: one that was read, or written before."""
        if self._keeps_unknown:
            return _encode({**msgspec.to_builtins(message, str_keys=True), **_rest(message)})
        return _encode(message)

    def _read_all(self, data: Any) -> Any:
        return self._convert_all(msgspec.json.decode(data))

    def _convert_all(self, plain: Any) -> Any:
        message = self._convert(plain)
        known = self.cls.__struct_encode_fields__
        unknown = {name: value for name, value in plain.items() if name not in known}
        return with_unknown_fields(message, unknown)

    def _check_same(self, message: Any, copy: Any) -> None:
        found = difference(message, copy)
        if found is not None:
            raise self._unwritable(_told(found))

    def _check_markers(self, data: bytes) -> None:
        waiting = [msgspec.json.decode(data)]
        while waiting:
            one = waiting.pop()
            if isinstance(one, dict):
                if one.keys() == _MARKERS:
                    raise self._unwritable(
                        f"it holds an object with the keys {' and '.join(sorted(_MARKERS))} alone,"
                        " which Celery's JSON reads as something else. Rename one of them"
                    )
                waiting += one.values()
            elif isinstance(one, list):
                waiting += one

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
    """Return the codec of a message class; made with the class, or else at its first use.

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
                " in the module of the class, and not under TYPE_CHECKING alone."
            ) from error
    return codec


def make_codec(cls: Any) -> None:
    """Make the codec of a new class; at its first use, if a type is defined further down.

    Raises:
        RegistrationError: a field's type has no form in JSON.
    """
    try:
        cls.__codec__ = Codec(cls)
    except NameError:
        cls.__codec__ = None


def check_codecs(registry: Registry) -> None:
    """Make the codecs that could not be made with their classes; a query needs none.

    Raises:
        RegistrationError: a field's type has no form in JSON, or is not defined.
    """
    for entry in registry.subclasses(object):
        if entry.kind != "query":
            codec_of(entry.cls)


def fields_of(message: Any) -> list[tuple[str, Any]]:
    """Return the names and values of a message's fields, those included that its class lacks."""
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
    sent, back = (_shortened(repr(one)) for one in (found.sent, found.back))
    return (
        f"the field {found.path!r} holds {sent} of the type {type(found.sent).__name__}, which"
        f" would come back as {back} of the type {type(found.back).__name__}. Declare the field"
        " with the type of its values, or record a value that JSON can hold"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
