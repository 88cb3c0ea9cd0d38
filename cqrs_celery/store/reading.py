"""Distinguish reads that a replica may answer from reads that the primary must answer.

A store that has a replica calls `replica_may_answer` before each read that the replica could
answer. Code that decides by what it has read can find out afterwards whether a replica was used:

    with Reads() as reads:
        ...
    if reads.used_replica:
        with Reads(from_primary=True):
            ...

All reads in the block count: those in this thread, task or greenlet, and those in threads that take
its context with them, as asyncio's do.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Self

_current: ContextVar[Reads | None] = ContextVar("cqrs_reads", default=None)


class Reads:
    """The reads of one block of code. Each instance is used once.

    Args:
        from_primary: whether the primary must answer all of them; True applies to inner blocks too.

    Attributes:
        from_primary: whether the primary must answer them.
        used_replica: whether a replica was asked in this block or an inner one.
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
    """Return whether a replica may answer the next read; if so, note that a replica is used."""
    reads = _current.get()
    if reads is None:
        return True
    if reads.from_primary:
        return False
    reads.used_replica = True
    return True
