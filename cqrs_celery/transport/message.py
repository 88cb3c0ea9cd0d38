"""A message as Celery gets it: its JSON is read in a quarter of Kombu's time, its size bounded."""

from __future__ import annotations

import bz2
import contextlib
import lzma
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

from kombu.compression import _aliases, _decoders
from kombu.serialization import registry
from kombu.transport import virtual
from kombu.utils.json import loads

from ..transport import envelope

_JSON = "application/json"

#: Of Kombu's compressions, those that can be expanded up to a bound.
_BOUNDED: Final[Mapping[str, Callable[[], Any]]] = {
    "application/x-gzip": zlib.decompressobj,
    "application/x-bz2": bz2.BZ2Decompressor,
    "application/x-lzma": lzma.LZMADecompressor,
}


class BodyExpandsTooFar(ValueError):
    """A compressed body holds more than is accepted; it was not expanded any further."""


class Message(virtual.Message):
    """A delivered message; what it refuses and how it fails is Kombu's.

    Beyond that, a body that was compressed by Celery, and holds more than its channel's
    `max_expanded_bytes`, can't be decoded.
    """

    def __init__(self, payload: Any, channel: Any = None, **options: Any) -> None:
        if payload.get("body") and (payload.get("headers") or {}).get("compression"):
            try:
                _check_expanded(payload, channel)
            except BodyExpandsTooFar:
                # Where Kombu keeps what it finds; it expands nothing then.
                self.errors = [sys.exc_info()]
        super().__init__(payload, channel=channel, **options)

    def _decode(self) -> Any:
        # Where JSON is not in `accept`, or somebody has registered a decoder of their own for it,
        # Kombu decides; so it does what to raise about a body that is no JSON.
        is_bytes_of_json = self.content_type == _JSON and isinstance(self.body, bytes) and self.body
        if is_bytes_of_json and _JSON in (self.accept or ()) and _is_kombus_own():
            with contextlib.suppress(ValueError):
                return envelope.read_json(self.body)
        return super()._decode()


def _check_expanded(payload: Any, channel: Any) -> None:
    """Check how much a compressed body holds, if that can be told without expanding all of it.

    Raises:
        BodyExpandsTooFar: it holds more than is accepted.
    """
    compression, most = payload["headers"]["compression"], int(channel.max_expanded_bytes)
    is_too_far = False
    # What can't be decoded at all, Kombu will say.
    with contextlib.suppress(ValueError, TypeError, EOFError, OSError, zlib.error, lzma.LZMAError):
        name = _aliases.get(compression, compression)
        expander = _BOUNDED.get(name) if name in _decoders else None
        if expander is None:
            return
        body = channel.decode_body(payload["body"], payload["properties"].get("body_encoding"))
        body = body.encode() if isinstance(body, str) else body
        is_too_far = len(expander().decompress(body, most + 1)) > most
    if is_too_far:
        raise BodyExpandsTooFar(
            f"its body is compressed ({compression}), and holds more than {most:,} bytes. If it is"
            " to be handled, raise broker_transport_options['max_expanded_bytes'], then redrive"
            " this letter"
        )


def _is_kombus_own() -> bool:
    return registry._decoders.get(_JSON) is loads
