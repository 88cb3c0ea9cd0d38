"""The event loop of this process, in which async handlers run that nobody awaits.

A worker's task is called, not awaited; so is whatever `execute` and `query` call. An async handler
runs for them in one loop that the process has, in a thread of its own, made at its first use and
after a fork anew, while the caller waits. All handlers of a process that are under way share it, so
a connection pool that belongs to a loop serves all of them.

In gevent's pool, the loop is a greenlet of the worker's thread, as everything there is.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import sys
import threading
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, Final

from celery.signals import worker_process_shutdown, worker_shutdown

from ..errors import HandlerCancelled
from .celery_state import in_state, state_here, task_in_state

#: Seconds that the loop has at the end of the process to bring its tasks to their end.
CLOSE_S: Final = 5.0


class EventLoop:
    """A running event loop, and the thread that it runs in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(task_in_state)
        self._ended = threading.Event()
        self._ident = 0
        self._is_ending = False
        start(self._run)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_ending:
                # A handler that exits has its SystemExit raised here too; others go on.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self.loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            self._ended.set()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the loop's own, which may not wait for it."""
        return self._ident == threading.get_ident()

    def close(self) -> None:
        """Cancel what runs, wait for it for a moment, and end the loop."""
        with contextlib.suppress(RuntimeError, TimeoutError, concurrent.futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(_end_tasks(), self.loop).result(CLOSE_S)
        self._is_ending = True
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.loop.stop)
        if self._ended.wait(CLOSE_S):
            self.loop.close()


async def _end_tasks() -> None:
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CLOSE_S / 2)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


class _Run:
    """One coroutine on its way through the loop, and a thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]):
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def wait(self, what: str) -> Any:
        """Run the coroutine; return what it returns, or raise what it raises."""
        try:
            with in_state(state_here()):
                self._loop.call_soon_threadsafe(self._begin)
            return self._future.result()
        except asyncio.CancelledError as error:
            raise _cancelled(what) from error
        except BaseException as error:
            if self._future.done() and self._future.exception() is error:
                raise
            return self._end(error, what)

    def _end(self, error: BaseException, what: str) -> Any:
        """Cancel the coroutine, since whoever waits was interrupted, and wait for its end.

        It may clean up, and return or raise what it likes, as a sync handler may that has caught
        its soft time limit. If it just ends, what has interrupted is raised; and where that ends
        the process or the greenlet, it is raised after a moment, whatever the coroutine does.
        """
        self._is_cancelled = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._cancel)
        if not isinstance(error, Exception):
            concurrent.futures.wait([self._future], CLOSE_S)
            raise error
        try:
            return self._future.result()
        except asyncio.CancelledError:
            raise error from None

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._done)
        if self._is_cancelled:
            self._task.cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            self._future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(task.result())


def _cancelled(what: str) -> HandlerCancelled:
    return HandlerCancelled(
        f"the async handler {what} was cancelled from within, or because its process ends; nothing"
        " was committed. A handler that cancels what it awaits has to catch the CancelledError.",
        handler=what,
    )


_current: EventLoop | None = None
_guard = threading.Lock()


def run_coroutine(coroutine: Coroutine[Any, Any, Any], *, of: str) -> Any:
    """Run a coroutine to its end in the process's event loop, while this thread waits.

    If the waiting thread is interrupted, as by a soft time limit, the coroutine is cancelled.

    Args:
        coroutine: runs in a copy of this context.
        of: the name of its handler, for errors.

    Returns:
        What it returns.

    Raises:
        HandlerCancelled: it was cancelled by nobody who waits for it.
        BaseException: whatever it raises, or what has interrupted.
    """
    loop = _the_loop()
    if loop.is_here:
        # Something sync, called by a coroutine: the loop waits for it, so it can't go on there.
        return _run_apart(coroutine)
    return _Run(loop.loop, coroutine).wait(of)


def _run_apart(coroutine: Coroutine[Any, Any, Any]) -> Any:
    context = copy_context()
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="cqrs-apart") as executor:
        return executor.submit(context.run, asyncio.run, coroutine).result()


def _the_loop() -> EventLoop:
    global _current
    current = _current
    if current is None:
        with _guard:
            if _current is None:
                _current = EventLoop()
            current = _current
    return current


def close_loop(**_: Any) -> None:
    """End the process's event loop, if there is one; the next coroutine gets another."""
    global _current
    with _guard:
        current, _current = _current, None
    if current is not None:
        current.close()


def is_loop_running() -> bool:
    """Return whether an event loop runs what is called here."""
    if asyncio._get_running_loop() is None:
        return False
    # Greenlets share their thread's mark: there, only the frames tell whose loop it is.
    return not _is_gevent() or _is_called_by_a_loop()


def _is_called_by_a_loop() -> bool:
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_code is BaseEventLoop._run_once.__code__:  # type: ignore[attr-defined]
            return True
        frame = frame.f_back
    return False


def _is_gevent() -> bool:
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and monkey.is_module_patched("threading")


def start(run: Callable[[], None]) -> None:
    """Start a loop in a thread of its own; in a greenlet, where threads are such."""
    if _is_gevent():
        # Here: gevent need not be installed.
        from .gevent_loop import LoopGreenlet

        LoopGreenlet.spawn(run)
    else:
        threading.Thread(target=run, name="cqrs-event-loop", daemon=True).start()


#: The loop of the parent process, where this one is a fork: its thread is not here. Closing it
#: would end the parent's, which shares its descriptors.
_of_parent: list[EventLoop] = []


def _leave_the_loop_to_the_parent() -> None:
    global _current, _guard
    _guard = threading.Lock()
    if _current is not None:
        _of_parent.append(_current)
        _current = None


os.register_at_fork(after_in_child=_leave_the_loop_to_the_parent)
atexit.register(close_loop)
worker_process_shutdown.connect(close_loop, weak=False)
worker_shutdown.connect(close_loop, weak=False)
