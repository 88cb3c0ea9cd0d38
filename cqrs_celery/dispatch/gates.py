"""A queue for an aggregate's lock within one event loop, before a thread waits for the lock.

A loop may run a thousand commands at a time, and has a few threads. Of the commands that want the
same lock, one waits for it in a thread; the others wait here, in the order of their arrival.
"""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from ..store.refusals import lock_timeout
from ..store.stream import StreamName

#: The gates in use, by loop; then by the `Locks` and the aggregate's stream.
_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, StreamName], Gate]] = (
    WeakKeyDictionary()
)


class Gate:
    """The queue for one lock in one loop; a command that has entered it must leave it."""

    def __init__(self, gates: dict[tuple[Any, StreamName], Gate], key: Any) -> None:
        self._gates = gates
        self._key = key
        self._users = 0
        self._lock = asyncio.Lock()

    async def enter(self, wait_s: float) -> None:
        """Wait until all commands that came before have left.

        Args:
            wait_s: the most seconds to wait.

        Raises:
            TimeoutError: they have not left in time.
        """
        self._users += 1
        try:
            if self._lock.locked():
                await asyncio.wait_for(self._lock.acquire(), wait_s)
            else:
                await self._lock.acquire()
        except BaseException:
            self._forget()
            raise

    def leave(self) -> None:
        """Let the next command in."""
        self._lock.release()
        self._forget()

    def _forget(self) -> None:
        self._users -= 1
        if not self._users:
            del self._gates[self._key]


async def enter_gate(locks: Any, stream: StreamName, *, wait_s: float) -> Gate:
    """Enter the gate of an aggregate's lock, and return it.

    Args:
        locks: the locks; each has gates of its own.
        stream: the aggregate's stream.
        wait_s: the most seconds to wait.

    Raises:
        LockTimeout: other commands of this loop were in the gate all the time.
    """
    gates = _gates.setdefault(asyncio.get_running_loop(), {})
    key = locks, stream
    gate = gates.get(key)
    if gate is None:
        gate = gates[key] = Gate(gates, key)
    try:
        await gate.enter(wait_s)
    except TimeoutError:
        raise lock_timeout(
            stream, holder="another command of this event loop", waited_s=wait_s
        ) from None
    return gate
