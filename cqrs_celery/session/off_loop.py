"""Run what blocks in a thread, so that an event loop goes on meanwhile.

The threads are the package's own: the loop's default executor may be full of what an application
has put there. What waits for somebody else's lock has threads apart, since whoever holds the lock
needs one to commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Threads that read and commit, and threads that wait for locks.
IO_THREADS: Final = 32
WAITING_THREADS: Final = 32

_executors: dict[str, ThreadPoolExecutor] = {}
_guard = threading.Lock()


async def off_loop(call: Callable[..., T], /, *args: Any) -> T:
    """Call a function in a thread, in a copy of this context, and return what it returns.

    If the caller is cancelled meanwhile, the call is brought to its end first: a commit that is
    under way is not left alone with a session that is closed.

    Args:
        call: the function; it reads or commits, and waits for nobody who needs such a thread.
        args: its arguments.
    """
    future = _submit("cqrs-io", IO_THREADS, call, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([future])
        if not future.cancelled():
            future.exception()  # seen; the cancellation is what the caller is told
        raise


async def wait_off_loop(call: Callable[..., T], /, *args: Any) -> T:
    """Call a function as `off_loop` does that may wait for who commits by that.

    If the caller is cancelled, the call goes on, and nobody is told how it ends.
    """
    return await _submit("cqrs-waiting", WAITING_THREADS, call, *args)


def _submit(name: str, threads: int, call: Callable[..., T], /, *args: Any) -> asyncio.Future[T]:
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return loop.run_in_executor(_executor(name, threads), partial(context.run, call, *args))


def _executor(name: str, threads: int) -> ThreadPoolExecutor:
    with _guard:
        executor = _executors.get(name)
        if executor is None:
            executor = _executors[name] = ThreadPoolExecutor(threads, thread_name_prefix=name)
        return executor


#: The executors of the parent process, where this one is a fork: their threads are not here.
_of_parent: list[ThreadPoolExecutor] = []


def _leave_threads_to_the_parent() -> None:
    global _guard
    _guard = threading.Lock()
    _of_parent.extend(_executors.values())
    _executors.clear()


os.register_at_fork(after_in_child=_leave_threads_to_the_parent)
