"""Run blocking calls in threads, so that the event loop is not blocked.

The threads are the package's own, since the loop's default executor may be full of the
application's own calls. Calls that wait for a lock have separate threads, since the holder of the
lock needs a thread to commit. So have sync handlers, which may wait for a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Threads of each kind: for reads and commits, for waiting on locks, for sync handlers.
THREADS: Final = 32

_IO, _WAITING, _HANDLERS = "cqrs-io", "cqrs-waiting", "cqrs-handlers"

#: How many calls off the loop the present call is nested in. With events in memory, and in eager
#: mode, a call may wait for a coroutine that makes such a call itself. Each level has its own
#: threads, so that no call waits for a thread of its own level.
_level: ContextVar[int] = ContextVar("cqrs_off_loop_level", default=0)

_executors: dict[tuple[str, int], ThreadPoolExecutor] = {}
_guard = threading.Lock()


async def off_loop(call: Callable[..., T], /, *args: Any) -> T:
    """Call a function in a thread, in a copy of this context, and return its result.

    If the caller is cancelled, the call is completed first: a commit that is under way must not be
    left with a session that is closed.

    Args:
        call: the function. It reads or commits, and waits for nothing that needs such a thread.
        args: the function's arguments.
    """
    future = _submit(_IO, call, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # retrieved; the caller gets the cancellation
        raise


async def wait_off_loop(call: Callable[..., T], /, *args: Any) -> T:
    """Call a function as `off_loop` does, where it may wait for a commit that `off_loop` runs.

    If the caller is cancelled, the call goes on, and its outcome is lost.
    """
    return await _submit(_WAITING, call, *args)


async def handler_off_loop(call: Callable[..., T], /, *args: Any) -> T:
    """Run a sync handler in a thread, and return its result.

    If the caller is cancelled, the call goes on, and its outcome is lost.
    """
    return await _submit(_HANDLERS, call, *args)


def _submit(kind: str, call: Callable[..., T], /, *args: Any) -> asyncio.Future[T]:
    level = _level.get()
    context = copy_context()
    context.run(_level.set, level + 1)
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_executor(kind, level), partial(context.run, call, *args))


def _executor(kind: str, level: int) -> ThreadPoolExecutor:
    with _guard:
        executor = _executors.get((kind, level))
        if executor is None:
            executor = ThreadPoolExecutor(THREADS, thread_name_prefix=kind)
            _executors[kind, level] = executor
        return executor


#: The executors of the parent process, if this one is a fork: their threads were not forked.
_of_parent: list[ThreadPoolExecutor] = []


def _leave_threads_to_the_parent() -> None:
    global _guard
    _guard = threading.Lock()
    _of_parent.extend(_executors.values())
    _executors.clear()


os.register_at_fork(after_in_child=_leave_threads_to_the_parent)
