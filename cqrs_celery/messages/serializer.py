"""Turn messages into JSON and back, with one clear error for whatever can't be read."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ..errors import ConfigurationError, MalformedMessage, MessageError
from .registry import Registry
from .registry import registry as default_registry


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
    """

    def __init__(self, application: str, registry: Registry = default_registry) -> None:
        if not application.strip():
            raise ConfigurationError(
                "the application's name is blank; expected a name such as 'inventory'"
            )
        self.application = application
        self.registry = registry
        self._encoder = msgspec.json.Encoder()
        self._decoders: dict[type[Any], msgspec.json.Decoder[Any]] = {}

    def name_of(self, cls: type[Any]) -> str:
        """Return the full name of a message class, as it is stored and sent."""
        return str(cls.__registered__.full_name(self.application))

    def encode(self, message: Any) -> Encoded:
        """Return a message as it is stored. Whatever is returned can be decoded.

        msgspec checks types only when it decodes, so that is done here too: an event that can't be
        read would close its aggregate for ever.

        Raises:
            MalformedMessage: a field holds a value that JSON has no form for, or that is not of
                its type.
        """
        cls = type(message)
        name, version = self.name_of(cls), cls.__registered__.version
        try:
            data = self._encoder.encode(message)
            self._decoder_of(cls).decode(data)
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise _unwritable(name, version, error) from error
        return Encoded(name, version, data)

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
        except (TypeError, ValueError, OverflowError, msgspec.MsgspecError) as error:
            raise _unwritable(name, version, error) from error
        return {"type": name, "version": version, "data": data}

    def decode(self, kind: str, name: str, version: int, data: bytes | memoryview) -> Any:
        """Return the message that stored bytes hold.

        Args:
            kind: command, query, event or message.
            name: the full name beside the bytes.
            version: beside the bytes.
            data: a JSON object.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the bytes don't fit the type; the text says where.
        """
        cls = self.registry.find(kind, name, version, self.application).cls
        try:
            return self._decoder_of(cls).decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _malformed(kind, name, version, error) from error

    def from_plain(self, kind: str, plain: Any) -> Any:
        """Return the message that a task's plain argument holds.

        Args:
            kind: command, query, event or message.
            plain: what `to_plain` returned, or what JSON made of it.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the values don't fit the type; the text says where.
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
        return self.convert(kind, name, version, data)

    def convert(self, kind: str, name: str, version: int, data: Any) -> Any:
        """Return the message whose fields are given as plain values.

        Raises:
            UnknownMessageType: the name and version are not registered.
            MalformedMessage: the values don't fit the type; the text says where.
        """
        cls = self.registry.find(kind, name, version, self.application).cls
        try:
            return msgspec.convert(data, cls, builtin_types=())
        except msgspec.ValidationError as error:
            raise _malformed(kind, name, version, error) from error

    def _decoder_of(self, cls: type[Any]) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders.get(cls)
        if decoder is None:
            decoder = self._decoders[cls] = msgspec.json.Decoder(cls)
        return decoder


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
