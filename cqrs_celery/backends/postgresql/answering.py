"""Abandon a statement that the server does not answer in time.

A server that is frozen, or whose disk hangs, still acknowledges what its machine receives: neither
TCP's keepalives nor the driver see that nobody answers, and a statement waits for ever, also where
another server has taken over. So a thread looks which statements take too long, and shuts their
sockets. To their callers that is a connection that broke.

What the server does with the statement is not known, as with any connection that broke.
"""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import TracebackType
from typing import Any, Final

from sqlalchemy import Engine, event

#: Seconds for which a statement of the store's own may take: longer than any lock should be held.
ANSWER_S: Final = 30.0

#: Seconds between two looks at what takes too long.
LOOK_S: Final = 0.25


class _Local(threading.local):
    """What a thread has: its limit, and the innermost context that has one."""

    limit_s: float | None = ANSWER_S
    within: _Limited | None = None


class _Watcher:
    """A thread that shuts the sockets of connections that have run out of time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watched: dict[int, tuple[float, Any]] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._is_asleep = False

    def add(self, connection: Any, limit_s: float) -> int:
        """Watch a connection of the driver's; returns a number by which to remove it."""
        number = next(self._numbers)
        self._watched[number] = time.monotonic() + limit_s, connection
        # It sleeps only where nothing is watched, and says so before it looks.
        if self._is_asleep or self._thread is None:
            with self._changed:
                if self._thread is None:
                    self._thread = threading.Thread(
                        target=self._run, name="cqrs-postgresql-answers", daemon=True
                    )
                    self._thread.start()
                self._changed.notify()
        return number

    def remove(self, number: int) -> None:
        """Watch a connection no more; what is being shut has been, when this returns."""
        if self._watched.pop(number, None) is None:
            # Else its socket's number could be another one's by then.
            with self._changed:
                pass

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_asleep = True
                if not self._watched:
                    self._changed.wait()
                self._is_asleep = False
                now = time.monotonic()
                for number, (until, connection) in list(self._watched.items()):
                    if until <= now and self._watched.pop(number, None) is not None:
                        _shut(connection)
            time.sleep(LOOK_S)


def _shut(connection: Any) -> None:
    # The descriptor is a copy, since the driver closes its own.
    with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(socket.SHUT_RDWR)


class _Limited:
    """What is done within, with a limit to how long each connection that it uses may take."""

    __slots__ = ("_around", "_limit_s", "_numbers", "_outer")

    def __init__(self, around: AbstractContextManager[None], limit_s: float) -> None:
        self._around = around
        self._limit_s = limit_s
        self._numbers: list[int] = []

    def __enter__(self) -> None:
        self._around.__enter__()
        self._outer = _local.within
        _local.within = self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        _local.within = self._outer
        for number in self._numbers:
            _watcher.remove(number)
        return self._around.__exit__(kind, error, traceback)

    def add(self, connection: Any) -> None:
        """Count a connection of the driver's as used in this context."""
        self._numbers.append(_watcher.add(connection, self._limit_s))


def within_limit(around: AbstractContextManager[None]) -> AbstractContextManager[None]:
    """Return a context like another one, in which connections are shut that take too long.

    Args:
        around: what is entered first, and left last: it sees the errors of connections.
    """
    limit_s = _local.limit_s
    return around if limit_s is None else _Limited(around, limit_s)


def using(connection: Any) -> None:
    """Count a connection of the driver's as used, from now to the end of the context."""
    limited = _local.within
    if limited is not None:
        limited.add(connection)


def watch_engine(engine: Engine) -> None:
    """Count each connection that an engine's pool gives out as used."""
    if not event.contains(engine, "checkout", _checked_out):
        event.listen(engine, "checkout", _checked_out)


def _checked_out(connection: Any, record: Any, proxy: Any) -> None:
    using(connection)


@contextmanager
def limit(limit_s: float | None) -> Iterator[None]:
    """Limit how long this thread waits for each answer; None removes the limit."""
    before = _local.limit_s
    _local.limit_s = limit_s
    try:
        yield
    finally:
        _local.limit_s = before


def _begin_anew() -> None:
    # A fork has none of its parent's threads.
    global _watcher
    _watcher = _Watcher()


_local: Final = _Local()

_watcher = _Watcher()

os.register_at_fork(after_in_child=_begin_anew)
