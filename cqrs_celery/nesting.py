"""Find out how deeply JSON is nested, without recursion, before a recursive decoder reads it."""

from __future__ import annotations

from typing import Final

#: The most levels of lists and objects in a message that this package writes.
MADE_LEVELS: Final = 64

#: The most levels of lists and objects in a message from a queue. A worker passes a task to its
#: child process by pickle, which fails at about 450 levels.
READ_LEVELS: Final = 256

_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_ALL_ELSE = bytes(byte for byte in range(256) if byte not in b"[]{}")


def is_too_deep(text: bytes, levels: int = READ_LEVELS) -> bool:
    """Return whether JSON has more than a number of levels of lists and objects.

    Nearly every text has fewer opening brackets than that, so two counts decide. Otherwise the
    strings are removed, and then the innermost pairs of brackets, level by level.

    Args:
        text: JSON, or bytes that claim to be JSON. If they are not, False means that a decoder
            that stops at the first error goes no deeper than twice the levels.
        levels: the number of levels that are accepted.
    """
    if text.count(b"[") + text.count(b"{") <= levels:
        return False
    unescaped = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(unescaped.split(b'"')[::2])
    brackets = outside.translate(_AS_LISTS, _ALL_ELSE)
    for _ in range(levels):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return b"[]" in brackets or brackets.count(b"[") > levels
