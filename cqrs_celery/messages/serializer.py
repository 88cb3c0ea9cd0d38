"""Turn messages into JSON and back, with one clear error for whatever can't be read.

What is of a registered version is decoded straight into its class. Old versions take a longer way,
through upcasters; see `upcasting`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ..errors import ConfigurationError, MalformedMessage, MessageError, UpcastFailed
from ..nesting import MADE_LEVELS, READ_LEVELS, is_too_deep
from .compression import Compression, compress, decompress, expand
from .message import unknown_fields_of, with_unknown_fields
from .registry import Registered, Registry, Upcaster
from .registry import registry as default_registry
from .upcasting import Upcasting

#: Bytes of JSON that a command, a message or an event may have: 16 MiB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

#: What decodes the data of one version into its class.
Reader = Callable[[Any], Any]

#: Those of one kind, by name and version.
Readers = dict[tuple[str, int], Reader]


class Encoded(NamedTuple):
    """Be a message as it is stored: its full name, its version, its fields as a JSON object."""

    name: str
    version: int
    data: bytes


class Serializer:
    """Encode and decode messages for one application.

    Args:
        application: put in front of names that have no dot.
        registry: where message classes are looked up.
        compression: of what it encodes; None for none. It decodes whatever was compressed.
        max_bytes: the most bytes of JSON that a message may have before it is compressed.
    """

    def __init__(
        self,
        application: str,
        registry: Registry = default_registry,
        *,
        compression: Compression | None = None,
        max_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        if not application.strip():
            raise ConfigurationError(
                "the application's name is blank; expected a name such as 'inventory'"
            )
        self.application = application
        self.registry = registry
        self.compression = compression
        self.max_bytes = max_bytes
        self._encoder = msgspec.json.Encoder()
        self._decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}
        self._names: dict[type[Any], tuple[str, int]] = {}
        self._upcasting = Upcasting(application, registry)
        # What reads which kind, name and version straight away, and for which registrations.
        self._readers: defaultdict[str, Readers] = defaultdict(dict)
        self._classes: dict[tuple[str, str, int], type[Any]] = {}
        self._generation = -1

    def name_of(self, cls: type[Any]) -> str:
        """Return the full name of a message class, as it is stored and sent."""
        return str(cls.__registered__.full_name(self.application))

    def encode(self, message: Any) -> Encoded:
        """Return a message as it is stored. Whatever is returned can be decoded.

        msgspec checks types only when it decodes, so that is done here too: an event that can't be
        read would close its aggregate for ever.

        Raises:
            MalformedMessage: a field holds a value that JSON has no form for, or that is not of
                its type; or the message is nested too deep, or too large.
        """
        cls = type(message)
        known = self._names.get(cls)
        if known is None:
            known = self._names[cls] = self.name_of(cls), cls.__registered__.version
        name, version = known
        try:
            data = self._encoder.encode(message)
            self._decoder_of(cls).decode(data)
            if cls.__keeps_unknown__:
                data = self._encoder.encode(message.__json__()["data"])
        except RecursionError as error:
            raise self._too_deep(message, name, version) from error
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise _unwritable(name, version, error) from error
        self._check_limits(message, name, version, data)
        return Encoded(name, version, compress(data, self.compression))

    def to_plain(self, message: Any) -> dict[str, Any]:
        """Return a message as plain values, the form in which it is a task's argument.

        Raises:
            MalformedMessage: as `encode` does.
        """
        cls = type(message)
        name, version = self.name_of(cls), cls.__registered__.version
        try:
            data = msgspec.to_builtins(message)
            msgspec.convert(data, cls, builtin_types=())
            data |= unknown_fields_of(message)
            encoded = self._encoder.encode(data)
        except RecursionError as error:
            raise self._too_deep(message, name, version) from error
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise _unwritable(name, version, error) from error
        self._check_limits(message, name, version, encoded)
        return {"type": name, "version": version, "data": self._compressed(data, encoded)}

    def _check_limits(self, message: Any, name: str, version: int, data: bytes) -> None:
        """Refuse what those that are to read it would refuse.

        Raises:
            MalformedMessage: it is nested too deep, or too large.
        """
        if is_too_deep(data, MADE_LEVELS):
            raise self._too_deep(message, name, version)
        if len(data) > self.max_bytes:
            sizes = {field: len(self._encoder.encode(value)) for field, value in _fields(message)}
            field = max(sizes, key=sizes.__getitem__, default="")
            raise MalformedMessage(
                f"{name}, version {version}, has {len(data):,} bytes of JSON, of which {field!r}"
                f" has {sizes.get(field, 0):,}; accepted: up to {self.max_bytes:,}. Nothing was"
                " sent or stored. Keep large data elsewhere and send where they are, or raise the"
                " setting cqrs_max_message_bytes, for workers first.",
                name=name,
                version=version,
            )

    def _too_deep(self, message: Any, name: str, version: int) -> MessageError:
        deep = [repr(field) for field, value in _fields(message) if self._is_deep(value)]
        return MalformedMessage(
            f"{name}, version {version}, is nested deeper than {MADE_LEVELS} levels of lists and"
            f" objects{', in ' + ', '.join(deep) if deep else ''}. Nothing was sent or stored. Send"
            " a flat form, such as a list of nodes that name their parents.",
            name=name,
            version=version,
        )

    def _is_deep(self, value: Any) -> bool:
        try:
            return is_too_deep(self._encoder.encode(value), MADE_LEVELS - 1)
        except RecursionError:
            return True

    def _compressed(self, data: Any, encoded: bytes) -> Any:
        """Return plain values, or the text that stands for them."""
        if self.compression is None:
            return data
        made = compress(encoded, self.compression)
        return data if made is encoded else msgspec.json.decode(made)

    def decode(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Any:
        """Return the message that stored bytes hold, if they hold one.

        Args:
            kind: command, query, event or message.
            name: the full name beside the bytes.
            version: beside the bytes.
            data: a JSON object.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the bytes don't fit the type; the text says where.
            UpcastFailed: an upcaster failed, or made of it none or several.
        """
        return self._single(kind, name, version, self.decode_all(kind, name, version, data))

    def decode_all(
        self, kind: str, name: str, version: int, data: bytes | memoryview
    ) -> Sequence[Any]:
        """Return the messages that stored bytes hold: one, unless an upcaster makes it others.

        Args and errors are those of `decode`.
        """
        if self._generation != self.registry.generation:
            self._forget()
        read = self._readers[kind].get((name, version))
        if read is None:
            return self._read(kind, name, version, data)
        try:
            return (read(data),)
        except RecursionError as error:
            raise _too_deep_to_read(kind, name, version) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Looked at only now, so that it costs nothing where it is not: no message is a text.
            if (plain := decompress(data)) is not data:
                return self.decode_all(kind, name, version, plain)
            raise _malformed(kind, name, version, error) from error

    def readers(self, kind: str) -> Readers:
        """Return what reads straight away, so far: for who decodes many, one after the other.

        What they return is what `decode_all` returns a list of; where one is missing, or raises,
        that is to be asked. They hold for the registrations of now.
        """
        if self._generation != self.registry.generation:
            self._forget()
        return self._readers[kind]

    def _forget(self) -> None:
        generation = self.registry.generation
        self._readers, self._classes = defaultdict(dict), {}
        self._generation = generation

    def _read(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Sequence[Any]:
        """Decode what nothing is known to read straight away, and find out whether it can be."""
        readers = self._readers[kind]
        found = self.registry.resolve(kind, name, version, self.application)
        try:
            if isinstance(found, Registered):
                read = readers[name, version] = self._reader_of(found.cls)
                return (read(decompress(data)),)
            plain = msgspec.json.decode(decompress(data))
        except RecursionError as error:
            raise _too_deep_to_read(kind, name, version) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(kind, name, version, error) from error
        return self._upcast(found, name, version, plain)

    def _reader_of(self, cls: type[Any]) -> Reader:
        if not cls.__keeps_unknown__:
            return self._decoder_of(cls).decode
        return lambda data: _convert(msgspec.json.decode(data), cls)

    def _upcast(self, upcaster: Upcaster, name: str, version: int, data: Any) -> list[Any]:
        messages = []
        for reader, made in self._upcasting.follow(upcaster, name, version, data):
            try:
                messages.append(_convert(made.data, reader.cls))
            except msgspec.ValidationError as error:
                malformed = _malformed(upcaster.kind, made.name, made.version, error)
                malformed.add_note(f"an upcaster made it of {name!r}, version {version}")
                raise malformed from error
        return messages

    def _single(self, kind: str, name: str, version: int, messages: Sequence[Any]) -> Any:
        if len(messages) == 1:
            return messages[0]
        raise UpcastFailed(
            f"an upcaster has made {len(messages)} messages of the {kind} {name!r}, version"
            f" {version}; expected one here",
            name=name,
            version=version,
        )

    def from_plain(self, kind: str, plain: Any) -> Any:
        """Return the message that a task's plain argument holds.

        Args:
            kind: command, query, event or message.
            plain: what `to_plain` returned, or what JSON made of it.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the values don't fit the type; the text says where.
            UpcastFailed: an upcaster failed, or made of it none or several.
        """
        try:
            name, version, data = plain["type"], plain["version"], plain["data"]
        except (KeyError, TypeError) as error:
            raise MalformedMessage(
                f"a {kind} was expected as an object with type, version and data; found"
                f" {type(plain).__name__}"
                + (f" with {', '.join(map(str, plain))}" if isinstance(plain, dict) else ""),
                name="",
                version=0,
            ) from error
        return self._single(kind, name, version, self.convert_all(kind, name, version, data))

    def convert_all(self, kind: str, name: str, version: int, data: Any) -> Sequence[Any]:
        """Return the messages whose fields are plain values: one, unless it was upcast to others.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the values don't fit the type; the text says where.
            UpcastFailed: an upcaster failed.
        """
        if type(data) is str and (plain := expand(data)) is not None:
            return self.decode_all(kind, name, version, plain)
        if self._generation != self.registry.generation:
            self._forget()
        classes = self._classes
        cls = classes.get((kind, name, version))
        if cls is None:
            found = self.registry.resolve(kind, name, version, self.application)
            if isinstance(found, Upcaster):
                return self._upcast(found, name, version, data)
            cls = classes[kind, name, version] = found.cls
        try:
            return (_convert(data, cls),)
        except RecursionError as error:
            raise _too_deep_to_read(kind, name, version) from error
        except msgspec.ValidationError as error:
            raise _malformed(kind, name, version, error) from error

    def _decoder_of(self, cls: type[Any]) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders.get(cls)
        if decoder is None:
            decoder = self._decoders[cls] = msgspec.json.Decoder(cls)
        return decoder


def _convert(data: Any, cls: type[Any]) -> Any:
    message = msgspec.convert(data, cls, builtin_types=())
    if cls.__keeps_unknown__:
        known = cls.__struct_encode_fields__
        unknown = {name: value for name, value in data.items() if name not in known}
        return with_unknown_fields(message, unknown)
    return message


def _fields(message: Any) -> list[tuple[str, Any]]:
    known = [(name, getattr(message, name)) for name in message.__struct_fields__]
    return [*known, *unknown_fields_of(message).items()]


def _too_deep_to_read(kind: str, name: str, version: int) -> MessageError:
    return MalformedMessage(
        f"the {kind} {name!r}, version {version}, is nested deeper than {READ_LEVELS} levels",
        name=name,
        version=version,
    )


def _unwritable(name: str, version: int, error: Exception) -> MessageError:
    return MalformedMessage(
        f"{name}, version {version}, can't be written as JSON that can be read again: {error}",
        name=name,
        version=version,
    )


def _malformed(kind: str, name: str, version: int, error: Exception) -> MessageError:
    return MalformedMessage(
        f"the {kind} {name!r}, version {version}, does not fit its type: {error}",
        name=name,
        version=version,
    )
