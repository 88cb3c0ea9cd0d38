"""Turn messages into JSON and back, with a clear error for each message that can't be read.

A message of a registered version is decoded directly into its class. Old versions go through
upcasters; see `upcasting`.
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

#: The most bytes of JSON that a command, a message or an event may have: 16 MiB.
MAX_MESSAGE_BYTES = MOST_BYTES

#: A function that decodes the data of one version into its class.
Reader = Callable[[Any], Any]

#: The readers of one kind of message, by name and version.
Readers = dict[tuple[str, int], Reader]


class Encoded(NamedTuple):
    """A message as it is stored: its full name, its version, its fields as a JSON object."""

    name: str
    version: int
    data: bytes


class Serializer:
    """Encode and decode messages for one application.

    Args:
        application: the prefix of names without a dot.
        registry: the registry of the message classes.
        compression: how it compresses what it encodes; None for no compression. It decodes
            compressed data in either case.
        max_bytes: the most bytes of JSON that a message may have before compression, and that
            compressed data may expand to.

    Raises:
        ConfigurationError: the application's name is blank.
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
        # The readers by kind, name and version, and the generation of the registry they are for.
        self._readers: defaultdict[str, Readers] = defaultdict(dict)
        self._converters: dict[tuple[str, str, int], Reader] = {}
        self._generation = -1

    def name_of(self, cls: type[Any]) -> str:
        """Return the full name of a message class, as it is stored and sent."""
        return str(cls.__registered__.full_name(self.application))

    def encode(self, message: Any) -> Encoded:
        """Return a message as it is stored; decoding it gives an equal message.

        Raises:
            UnwritableMessage: a field holds a value that JSON has no form for, that is not of its
                type, or that would come back as another one; or the message is nested too deep, or
                too large.
        """
        cls = type(message)
        data, _ = codec_of(cls).write(message)
        return self.seal(cls, data)

    def seal(self, cls: type[Any], data: bytes) -> Encoded:
        """Return a codec's output as it is stored: with its name and version, and compressed.

        Args:
            cls: the message's class.
            data: its fields, as `Codec.write` returns them.

        Raises:
            UnwritableMessage: the message is too large.
        """
        name, version = self._named(cls)
        if len(data) > self.max_bytes:
            raise self._too_large(name, version, data)
        return Encoded(name, version, compress(data, self.compression))

    def to_plain(self, message: Any) -> dict[str, Any]:
        """Return a message as plain values, as a task takes it for an argument.

        They are the values that JSON gives, so that a task gets the same with and without a broker.

        Raises:
            UnwritableMessage: as `encode` does.
        """
        name, version, data = self.encode(message)
        return {"type": name, "version": version, "data": msgspec.json.decode(data)}

    def read_again(self, cls: type[Any], data: bytes) -> Sequence[Any]:
        """Return the events that will be read from a codec's output; see `decode_all`.

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
            " sent or stored. Keep large data elsewhere and send their location, or raise the"
            " setting cqrs_max_message_bytes, for workers first.",
            name=name,
            version=version,
        )

    def decode(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Any:
        """Return the message that stored bytes hold, if they hold one.

        Args:
            kind: command, query, event or message.
            name: the full name stored with the bytes.
            version: the version stored with the bytes.
            data: a JSON object.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the bytes don't fit the type; the text says where.
            UpcastFailed: an upcaster failed, or returned no message, or several.
        """
        return self._single(kind, name, version, self.decode_all(kind, name, version, data))

    def decode_all(
        self, kind: str, name: str, version: int, data: bytes | memoryview
    ) -> Sequence[Any]:
        """Return the messages that stored bytes hold: one, unless an upcaster splits or drops it.

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
            # Compressed data are a text, and no message is one. Checking for them only after the
            # failure costs nothing for data that are not compressed.
            plain = self._expanded(decompress, data, kind, name, version)
            if plain is not data:
                return self.decode_all(kind, name, version, plain)
            raise _malformed(kind, name, version, error) from error

    def readers(self, kind: str) -> Readers:
        """Return the known direct readers of a kind, for a caller that decodes many messages.

        A reader returns the single message that `decode_all` returns. If a reader is missing or
        raises an error, call `decode_all`. The readers are valid until the next registration.
        """
        if self._generation != self.registry.generation:
            self._forget()
        return self._readers[kind]

    def _forget(self) -> None:
        generation = self.registry.generation
        self._readers, self._converters = defaultdict(dict), {}
        self._generation = generation

    def _read(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Sequence[Any]:
        """Decode data without a known direct reader; remember the reader if there is one."""
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
        """Return the data expanded by `decompress` or `expand`.

        Raises:
            MalformedMessage: the message is larger than is accepted.
        """
        try:
            return expansion(data, self.max_bytes)
        except ExpandsTooFar as error:
            raise MalformedMessage(
                f"the {kind} {name!r}, version {version}, is larger than a message may be: {error}."
                " It was not read. To read it, raise the setting cqrs_max_message_bytes here.",
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
            plain: the value that `to_plain` returned, or the same after JSON.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the values don't fit the type; the text says where.
            UpcastFailed: an upcaster failed, or returned no message, or several.
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
        """Return the messages that plain values hold: one, unless an upcaster splits or drops it.

        Args:
            kind: command, query, event or message.
            name: the full name sent with the values.
            version: the version sent with the values.
            data: the fields as plain values, or a text that holds them in compressed form.

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
