"""Tell reads that a replica may answer from those that the primary must.

A store that has a replica asks `replica_may_answer` before each read for which it would do. Whoever
decides by what was read finds out afterwards whether a replica had a part in it:

    with Reads() as reads:
        ...
    if reads.used_replica:
        with Reads(from_primary=True):
            ...

What runs in the block counts, in this thread, task or greenlet, and in threads that take its
context with them, as those of asyncio do.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Self

_current: ContextVar[Reads | None] = ContextVar("cqrs_reads", default=None)


class Reads:
    """The reads of one block of code. Used once.

    Args:
        from_primary: whether the primary must answer all of them; so it must inside such a block.

    Attributes:
        from_primary: whether the primary must answer them.
        used_replica: whether a replica was asked in the block, or in one inside it.
    """

    __slots__ = ("_outer", "_token", "from_primary", "used_replica")

    _outer: Reads | None
    _token: Token[Reads | None]

    def __init__(self, *, from_primary: bool = False) -> None:
        self.from_primary = from_primary
        self.used_replica = False

    def __enter__(self) -> Self:
        outer = self._outer = _current.get()
        if outer is not None and outer.from_primary:
            self.from_primary = True
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        if self._outer is not None and self.used_replica:
            self._outer.used_replica = True


def replica_may_answer() -> bool:
    """Return whether a replica may answer the next read; if so, note that it is asked."""
    reads = _current.get()
    if reads is None:
        return True
    if reads.from_primary:
        return False
    reads.used_replica = True
    return True
