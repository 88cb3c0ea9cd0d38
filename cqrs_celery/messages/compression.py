"""Compress and expand large JSON texts: events, snapshots and the bodies of messages.

Compressed data are JSON again: a string that names its own format, such as `"cqrs:zstd:KLUv/…"`.
They fit wherever JSON does: in a Redis script, a jsonb column, a task's argument. No separate flag
marks them as compressed, and reading them needs no setting.
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

#: The accepted algorithms.
ALGORITHMS: Final = ("gzip", "zstd")

#: The size in bytes of JSON up to which data are not compressed.
THRESHOLD_BYTES: Final = 1000

#: The most bytes of JSON that a compressed text may expand to, by default: 16 MiB.
MOST_BYTES: Final = 16 * 1024 * 1024


class ExpandsTooFar(ValueError):
    """A compressed text holds more JSON than is accepted; it was not expanded any further."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(f"it is compressed, and holds more than {most_bytes:,} bytes of JSON")
        self.most_bytes = most_bytes


_FORM = re.compile(r"cqrs:(gzip|zstd):([A-Za-z0-9+/]+={0,2})")
#: The beginning of compressed JSON.
COMPRESSED: Final = '"cqrs:'

_START = COMPRESSED.encode()


@dataclass(frozen=True, slots=True)
class Compression:
    """The algorithm of compression, and the size above which data are compressed.

    Args:
        algorithm: "gzip", or "zstd", which is faster for large data and needs Python 3.14 or the
            extra `zstd`.
        threshold_bytes: the size in bytes of JSON up to which data are not compressed.

    Raises:
        ConfigurationError: there is no such algorithm.
        MissingDependency: zstd is not installed.
    """

    algorithm: str
    threshold_bytes: int = THRESHOLD_BYTES

    def __post_init__(self) -> None:
        """Check that the algorithm exists and is installed."""
        if self.algorithm not in ALGORITHMS:
            raise ConfigurationError(
                f"there is no compression {self.algorithm!r}; accepted: {' or '.join(ALGORITHMS)}"
            )
        if self.algorithm == "zstd":
            _zstd()


def compress(data: bytes, how: Compression | None) -> bytes:
    """Return JSON, compressed if it is above the threshold and compression makes it smaller.

    Args:
        data: JSON; if it is compressed already, it is returned unchanged.
        how: the algorithm and the threshold; None for no compression.

    Returns:
        The same JSON, or a JSON string that holds it in compressed form.

    Raises:
        MissingDependency: zstd is not installed.
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
    """Return the expanded form of compressed JSON; return any other JSON unchanged.

    Args:
        data: JSON; it may be compressed, or merely look so.
        most_bytes: the most bytes that it may expand to.

    Raises:
        ExpandsTooFar: it would expand to more than `most_bytes`.
        MissingDependency: it was compressed by zstd, which is not installed.
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
        text: any value; one that is not a text holds none.
        most_bytes: the most bytes that it may expand to.

    Raises:
        ExpandsTooFar: it would expand to more than `most_bytes`.
        MissingDependency: it was compressed by zstd, which is not installed.
    """
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    try:
        packed = base64.b64decode(match[2], validate=True)
        if match[1] == "gzip":
            return _bounded(zlib.decompressobj(_GZIP), packed, most_bytes)
        # A text may look like zstd and not be it; only real zstd data need the library.
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


#: The value by which zlib expects the header and the checksum of gzip.
_GZIP: Final = 16 + zlib.MAX_WBITS


def _bounded(decompressor: Any, packed: bytes, most_bytes: int) -> bytes | None:
    """Return the content of one compressed frame; None if it is cut off, or more data follow."""
    found: bytes = decompressor.decompress(packed, most_bytes + 1)
    if len(found) > most_bytes:
        raise ExpandsTooFar(most_bytes)
    return found if decompressor.eof and not decompressor.unused_data else None


def is_compressed(data: bytes | memoryview) -> bool:
    """Return whether JSON is the compressed form of other JSON."""
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
            "zstd is not installed, but is needed to compress data, or to read data that it has"
            f" compressed: {how_to_install('zstd')}"
        ) from error
    return zstd
