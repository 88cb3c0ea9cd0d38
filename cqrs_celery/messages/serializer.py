"""Turn messages into JSON and back, with one clear error for whatever can't be read.

What is of a registered version is decoded straight into its class. Old versions take a longer way,
through upcasters; see `upcasting`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from ..errors import (
    ConfigurationError,
    MalformedMessage,
    MessageError,
    UnwritableMessage,
    UpcastFailed,
)
from ..nesting import READ_LEVELS
from .codec import codec_of
from .compression import (
    MOST_BYTES,
    Compression,
    ExpandsTooFar,
    compress,
    decompress,
    expand,
)
from .registry import Registered, Registry, Upcaster
from .registry import registry as default_registry
from .upcasting import Upcasting

#: Bytes of JSON that a command, a message or an event may have: 16 MiB.
MAX_MESSAGE_BYTES = MOST_BYTES

#: What decodes the data of one version into its class.
Reader = Callable[[Any], Any]

#: Those of one kind, by name and version.
Readers = dict[tuple[str, int], Reader]


class Encoded(NamedTuple):
    """A message as it is stored: its full name, its version, its fields as a JSON object."""

    name: str
    version: int
    data: bytes


class Serializer:
    """Encode and decode messages for one application.

    Args:
        application: put in front of names that have no dot.
        registry: where message classes are looked up.
        compression: of what it encodes; None for none. It decodes whatever was compressed.
        max_bytes: the most bytes of JSON that a message may have before it is compressed, and that
            a compressed one may become.
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
        self._names: dict[type[Any], tuple[str, int]] = {}
        self._upcasting = Upcasting(application, registry)
        # What reads which kind, name and version straight away, and for which registrations.
        self._readers: defaultdict[str, Readers] = defaultdict(dict)
        self._converters: dict[tuple[str, str, int], Reader] = {}
        self._generation = -1

    def name_of(self, cls: type[Any]) -> str:
        """Return the full name of a message class, as it is stored and sent."""
        return str(cls.__registered__.full_name(self.application))

    def encode(self, message: Any) -> Encoded:
        """Return a message as it is stored. Whatever is returned can be decoded, to the same.

        Raises:
            UnwritableMessage: a field holds a value that JSON has no form for, that is not of its
                type, or that would come back as another one; or the message is nested too deep, or
                too large.
        """
        cls = type(message)
        data, _ = codec_of(cls).write(message)
        return self.seal(cls, data)

    def seal(self, cls: type[Any], data: bytes) -> Encoded:
        """Return what a codec has written as it is stored: named, and compressed.

        Args:
            cls: the message's class.
            data: its fields, as `Codec.write` returns them.

        Raises:
            UnwritableMessage: it is too large.
        """
        name, version = self._named(cls)
        if len(data) > self.max_bytes:
            raise self._too_large(name, version, data)
        return Encoded(name, version, compress(data, self.compression))

    def to_plain(self, message: Any) -> dict[str, Any]:
        """Return a message as plain values, the form in which it is a task's argument.

        They are what JSON makes of it, so that a task gets the same with a broker and without.

        Raises:
            UnwritableMessage: as `encode` does.
        """
        name, version, data = self.encode(message)
        return {"type": name, "version": version, "data": msgspec.json.decode(data)}

    def read_again(self, cls: type[Any], data: bytes) -> Sequence[Any]:
        """Return what will be read of an event that a codec has written; see `decode_all`.

        Args:
            cls: the event's class.
            data: its fields, as `Codec.write` returns them.

        Raises:
            MessageError: as `decode_all` does.
        """
        name, version = self._named(cls)
        return self.decode_all("event", name, version, data)

    def _named(self, cls: type[Any]) -> tuple[str, int]:
        known = self._names.get(cls)
        if known is None:
            known = self._names[cls] = self.name_of(cls), cls.__registered__.version
        return known

    def _too_large(self, name: str, version: int, data: bytes) -> UnwritableMessage:
        fields = msgspec.json.decode(data)
        sizes = {field: len(self._encoder.encode(value)) for field, value in fields.items()}
        field = max(sizes, key=sizes.__getitem__, default="")
        return UnwritableMessage(
            f"{name}, version {version}, has {len(data):,} bytes of JSON, of which {field!r}"
            f" has {sizes.get(field, 0):,}; accepted: up to {self.max_bytes:,}. Nothing was"
            " sent or stored. Keep large data elsewhere and send where they are, or raise the"
            " setting cqrs_max_message_bytes, for workers first.",
            name=name,
            version=version,
        )

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
            plain = self._expanded(decompress, data, kind, name, version)
            if plain is not data:
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
        self._readers, self._converters = defaultdict(dict), {}
        self._generation = generation

    def _read(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Sequence[Any]:
        """Decode what nothing is known to read straight away, and find out whether it can be."""
        readers = self._readers[kind]
        found = self.registry.resolve(kind, name, version, self.application)
        data = self._expanded(decompress, data, kind, name, version)
        try:
            if isinstance(found, Registered):
                read = readers[name, version] = codec_of(found.cls).read
                return (read(data),)
            plain = msgspec.json.decode(data)
        except RecursionError as error:
            raise _too_deep_to_read(kind, name, version) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(kind, name, version, error) from error
        return self._upcast(found, name, version, plain)

    def _expanded(
        self, expansion: Callable[..., Any], data: Any, kind: str, name: str, version: int
    ) -> Any:
        """Return what is compressed in data, by either way of expanding it.

        Raises:
            MalformedMessage: it is larger than a message may be.
        """
        try:
            return expansion(data, self.max_bytes)
        except ExpandsTooFar as error:
            raise MalformedMessage(
                f"the {kind} {name!r}, version {version}, is larger than a message may be: {error}."
                " It was not read. If it is to be, raise the setting cqrs_max_message_bytes here.",
                name=name,
                version=version,
            ) from error

    def _upcast(self, upcaster: Upcaster, name: str, version: int, data: Any) -> list[Any]:
        messages = []
        for reader, made in self._upcasting.follow(upcaster, name, version, data):
            try:
                messages.append(codec_of(reader.cls).convert(made.data))
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
        if type(data) is str:
            plain = self._expanded(expand, data, kind, name, version)
            if plain is not None:
                return self.decode_all(kind, name, version, plain)
        if self._generation != self.registry.generation:
            self._forget()
        converters = self._converters
        convert = converters.get((kind, name, version))
        if convert is None:
            found = self.registry.resolve(kind, name, version, self.application)
            if isinstance(found, Upcaster):
                return self._upcast(found, name, version, data)
            convert = converters[kind, name, version] = codec_of(found.cls).convert
        try:
            return (convert(data),)
        except RecursionError as error:
            raise _too_deep_to_read(kind, name, version) from error
        except (msgspec.ValidationError, UnicodeError) as error:
            raise _malformed(kind, name, version, error) from error


def _too_deep_to_read(kind: str, name: str, version: int) -> MessageError:
    return MalformedMessage(
        f"the {kind} {name!r}, version {version}, is nested deeper than {READ_LEVELS} levels",
        name=name,
        version=version,
    )


def _malformed(kind: str, name: str, version: int, error: Exception) -> MessageError:
    return MalformedMessage(
        f"the {kind} {name!r}, version {version}, does not fit its type: {error}",
        name=name,
        version=version,
    )
