"""Hold an aggregate's lock while a command to it is carried out, if its handler asks for that.

A lock saves writers useless work: each one that waits for it sees the state that the one before has
left. It guarantees nothing. It may expire while a handler runs, its server may not answer, and
writers that do not ask for it do not wait. Only the store's version check prevents two writers from
writing the same version.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import AbstractContextManager
from typing import Protocol, Self

from ..errors import InvalidSetting, LockTimeout, StoreUnavailable
from ..messages.registry import where
from ..session.off_loop import off_loop, wait_off_loop
from ..store.stream import StreamName
from .conflicts import ALWAYS
from .definitions import Definition
from .gates import Gate, enter_gate

logger = logging.getLogger(__name__)


class Locks(Protocol):
    """The locks of aggregates."""

    def hold(self, stream: StreamName, *, wait_s: float) -> AbstractContextManager[None]:
        """Hold an aggregate's lock while the block runs, or until it expires.

        Args:
            stream: the aggregate's stream.
            wait_s: the most seconds to wait for the lock; 0 tries once.

        Raises:
            LockTimeout: others held the lock all the time.
            StoreUnavailable: the server of the locks does not answer.
        """


class CommandLock:
    """The lock of one run of a handler: taken before it, after its first conflict, or never.

        with CommandLock(locks, stream, definition) as lock:
            lock.before()
            ...
            lock.after_conflict()

    Args:
        locks: the application's locks; None if it has none.
        stream: the stream to lock; None for a command without an aggregate.
        definition: the handler's definition, which says when to lock and how long to wait.

    Raises:
        InvalidSetting: the handler asks for a lock, but the application has no locks.
    """

    def __init__(
        self, locks: Locks | None, stream: StreamName | None, definition: Definition
    ) -> None:
        policy = definition.on_conflict
        check_locks(locks, definition)
        self._locks = locks
        self._stream = stream
        self._wait_s = policy.lock_wait_s
        self._is_always = policy.lock == ALWAYS
        self._is_wanted = bool(policy.lock and locks and stream)
        self._manager: AbstractContextManager[None] | None = None
        self._gate: Gate | None = None
        self._guard = threading.Lock()
        self._is_given_up = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if self._manager is not None:
                await off_loop(self._release)
        finally:
            self._leave_gate()

    def before(self) -> None:
        """Take the lock, if the handler always takes it."""
        if self._is_wanted and self._is_always:
            self._take(self._wait_s)

    def after_conflict(self) -> None:
        """Take the lock, unless it is held; go on without it if its server does not answer."""
        if self._is_wanted and self._manager is None:
            try:
                self._take(self._wait_s)
            except StoreUnavailable as error:
                self._do_without(error)

    async def before_async(self) -> None:
        """Take the lock as `before` does, without blocking the event loop."""
        if self._is_wanted and self._is_always:
            await self._take_async()

    async def after_conflict_async(self) -> None:
        """Take the lock as `after_conflict` does, without blocking the event loop."""
        if self._is_wanted and self._manager is None:
            try:
                await self._take_async()
            except StoreUnavailable as error:
                self._do_without(error)

    def _take(self, wait_s: float) -> None:
        assert self._locks is not None  # noqa: S101
        assert self._stream is not None  # noqa: S101
        manager = self._locks.hold(self._stream, wait_s=wait_s)
        manager.__enter__()
        self._manager = manager

    async def _take_async(self) -> None:
        assert self._locks is not None  # noqa: S101
        assert self._stream is not None  # noqa: S101
        until = time.monotonic() + self._wait_s
        self._gate = await enter_gate(self._locks, self._stream, wait_s=self._wait_s)
        try:
            if not await off_loop(self._take_if_free):
                await wait_off_loop(self._take_unless_given_up, until)
        except asyncio.CancelledError:
            # The thread goes on waiting; if it gets the lock, it has to release it itself.
            with self._guard:
                self._is_given_up = True
                self._release()
            raise

    def _take_if_free(self) -> bool:
        try:
            self._take(0.0)
        except LockTimeout:
            return False
        return True

    def _take_unless_given_up(self, until: float) -> None:
        self._take(max(0.0, until - time.monotonic()))
        with self._guard:
            if self._is_given_up:
                self._release()

    def _leave_gate(self) -> None:
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.leave()

    def _release(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.__exit__(None, None, None)

    def _do_without(self, error: StoreUnavailable) -> None:
        self._is_wanted = False
        logger.warning(
            "lock of %s not available, handler repeated without it: %s",
            self._stream,
            error,
            extra={"stream": str(self._stream), "why": str(error)},
        )


class CommandGate:
    """The place of a sync handler's command in an event loop's queue for its aggregate's lock.

    Only commands of handlers that always take the lock queue here, where they wait without a
    thread.

    Args:
        locks: the application's locks; None if it has none.
        stream: the stream to lock; None for a command without an aggregate.
        definition: the handler's definition, which says when to lock and how long to wait.
    """

    def __init__(
        self, locks: Locks | None, stream: StreamName | None, definition: Definition
    ) -> None:
        self._locks = locks
        self._stream = stream
        self._policy = definition.on_conflict
        self._gate: Gate | None = None

    async def __aenter__(self) -> Self:
        if self._locks is not None and self._stream is not None and self._policy.lock == ALWAYS:
            wait_s = self._policy.lock_wait_s
            self._gate = await enter_gate(self._locks, self._stream, wait_s=wait_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._gate is not None:
            self._gate.leave()


def check_locks(locks: Locks | None, definition: Definition) -> None:
    """Check that the application has locks, if a handler asks for them.

    Raises:
        InvalidSetting: the handler asks for a lock, but the application has no locks.
    """
    policy = definition.on_conflict
    if locks is None and policy.lock and policy.is_lock_asked_for:
        raise InvalidSetting(
            f"{where(definition.function)} asks for lock = {policy.lock!r}, but there is nothing to"
            " lock with: locks are kept in the broker's Redis, and the broker is none. Remove the"
            " lock, or make Redis the broker. Without a lock, two writers still never write one"
            " version.",
            setting="broker_url",
            accepted="a Redis or Valkey server",
        )
