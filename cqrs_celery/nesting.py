"""How deep JSON is nested, found without recursion, before a recursive decoder sees the text."""

from __future__ import annotations

from typing import Final

#: Levels of lists and objects that a message may have which this package makes.
MADE_LEVELS: Final = 64

#: Levels of lists and objects that a message from a queue may have. Python's pickle, with which a
#: worker hands a task to its child process, gives up at about 450.
READ_LEVELS: Final = 256

_AS_LISTS = bytes.maketrans(b"{}", b"[]")
_ALL_ELSE = bytes(byte for byte in range(256) if byte not in b"[]{}")


def is_too_deep(text: bytes, levels: int = READ_LEVELS) -> bool:
    """Return whether JSON has more than so many levels of lists and objects.

    Nearly every text is short of that many brackets, and two counts tell. Otherwise the strings are
    taken out, then the innermost pairs of brackets, level by level.

    Args:
        text: JSON, or what claims to be; of a text that is not, so much is told that a decoder that
            goes on to its first error does not go deeper than twice the levels.
        levels: how many are accepted.
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
