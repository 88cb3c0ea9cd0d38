"""Make large JSON texts smaller, and back: for events, snapshots and the bodies of messages.

What is compressed is JSON itself, a text that says what it is: `"cqrs:zstd:KLUv/…"`. So it goes
wherever JSON goes: into a Redis script, a jsonb column, a task's argument. Nothing beside it needs
to say that it is compressed, and nobody needs the setting to read it.
"""

from __future__ import annotations

import base64
import gzip
import re
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final

import msgspec

from ..errors import ConfigurationError, MissingDependency
from ..extras import how_to_install

#: What can be asked for.
ALGORITHMS: Final = ("gzip", "zstd")

#: Bytes of JSON up to which nothing is compressed.
THRESHOLD_BYTES: Final = 1000

#: Bytes of JSON that a compressed text may become, where nothing else is said: 16 MiB.
MOST_BYTES: Final = 16 * 1024 * 1024


class ExpandsTooFar(ValueError):
    """A compressed text holds more JSON than is accepted; it was not expanded any further."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"it is compressed, and holds more than {most_bytes:,} bytes of JSON")
        self.most_bytes = most_bytes


_FORM = re.compile(r"cqrs:(gzip|zstd):([A-Za-z0-9+/]+={0,2})")
#: What compressed JSON begins with.
COMPRESSED: Final = '"cqrs:'

_START = COMPRESSED.encode()


@dataclass(frozen=True, slots=True)
class Compression:
    """How to compress, and from which size on.

    Args:
        algorithm: "gzip", or "zstd", which is faster for large data and needs Python 3.14 or the
            extra `zstd`.
        threshold_bytes: up to this size of JSON, data stay as they are.

    Raises:
        ConfigurationError: there is no such algorithm.
        MissingDependency: zstd is not installed.
    """

    algorithm: str
    threshold_bytes: int = THRESHOLD_BYTES

    def __post_init__(self) -> None:
        """Check that it can be done."""
        if self.algorithm not in ALGORITHMS:
            raise ConfigurationError(
                f"there is no compression {self.algorithm!r}; accepted: {' or '.join(ALGORITHMS)}"
            )
        if self.algorithm == "zstd":
            _zstd()


def compress(data: bytes, how: Compression | None) -> bytes:
    """Return JSON, compressed if it is above the threshold and becomes smaller by it.

    Args:
        data: JSON; what is compressed already stays as it is.
        how: None for not at all.

    Returns:
        JSON: the same, or a string.
    """
    if how is None or len(data) <= how.threshold_bytes or is_compressed(data):
        return data
    if how.algorithm == "gzip":
        packed = gzip.compress(data, compresslevel=6, mtime=0)
    else:
        zstd = _zstd()
        packed = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    text = b'%s%s:%s"' % (_START, how.algorithm.encode(), base64.b64encode(packed))
    return text if len(text) < len(data) else data


def decompress(data: bytes | memoryview, most_bytes: int = MOST_BYTES) -> bytes | memoryview:
    """Return what was compressed; what was not, or merely looks so, as it is.

    Args:
        data: JSON.
        most_bytes: how much JSON it may hold.

    Raises:
        ExpandsTooFar: it holds more.
        MissingDependency: it needs zstd, which is not installed.
    """
    if data[: len(_START)] != _START:
        return data
    try:
        text = msgspec.json.decode(data, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return data
    found = expand(text, most_bytes)
    return data if found is None else found


def expand(text: Any, most_bytes: int = MOST_BYTES) -> bytes | None:
    """Return the JSON that a decoded string holds in compressed form; None if it holds none.

    Args:
        text: any value; what is no text holds none.
        most_bytes: how much JSON it may hold.

    Raises:
        ExpandsTooFar: it holds more.
        MissingDependency: it needs zstd, which is not installed.
    """
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    try:
        packed = base64.b64decode(match[2], validate=True)
        if match[1] == "gzip":
            return _bounded(zlib.decompressobj(_GZIP), packed, most_bytes)
        # It may look so, and be none: only what is must have the library.
        if packed[:4] != b"\x28\xb5\x2f\xfd":
            return None
        return _bounded(_zstd().ZstdDecompressor(), packed, most_bytes)
    except ExpandsTooFar:
        raise
    except (ValueError, EOFError, OSError, zlib.error):
        return None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        return None


#: Tells zlib to expect the head and the checksum of gzip.
_GZIP: Final = 16 + zlib.MAX_WBITS


def _bounded(decompressor: Any, packed: bytes, most_bytes: int) -> bytes | None:
    """Return what is in one compressed frame; None if it is cut off, or something is behind it."""
    found: bytes = decompressor.decompress(packed, most_bytes + 1)
    if len(found) > most_bytes:
        raise ExpandsTooFar(most_bytes)
    return found if decompressor.eof and not decompressor.unused_data else None


def is_compressed(data: bytes | memoryview) -> bool:
    """Return whether JSON is the compressed form of another one."""
    try:
        return decompress(data) is not data
    except ExpandsTooFar:
        return True


@cache
def _zstd() -> ModuleType | Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        raise MissingDependency(
            "zstd is not installed, and is needed to compress or to read what was compressed by it:"
            f" {how_to_install('zstd')}"
        ) from error
    return zstd
