"""The event loop of this process, which runs async handlers for synchronous callers.

A worker calls its tasks without awaiting them, and so do `execute` and `query`. For them, an async
handler runs in the process's own event loop while the caller waits. The loop has a thread of its
own, and is made at its first use, and again after a fork. All running handlers of a process share
it, so a connection pool that belongs to a loop serves all of them.

In gevent's pool, the loop is a greenlet of the worker's thread, like everything else there.
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

#: Seconds that the loop's tasks have to finish at the end of the process.
CLOSE_S: Final = 5.0


class EventLoop:
    """A running event loop, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(task_in_state)
        self._ended = threading.Event()
        self._ident = 0
        self._is_ending = False
        #: Whether the tasks that still run are being cancelled.
        self.is_closing = False
        start(self._run)

    def _run(self) -> None:
        self._ident = threading.get_ident()
        asyncio.set_event_loop(self.loop)
        try:
            while not self._is_ending:
                # A handler's SystemExit is raised here too; the loop goes on for other handlers.
                with contextlib.suppress(SystemExit, KeyboardInterrupt):
                    self.loop.run_forever()
        finally:
            asyncio.set_event_loop(None)
            self._ended.set()

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the loop's own, which must not wait for the loop."""
        return self._ident == threading.get_ident()

    def close(self) -> None:
        """Cancel the running tasks, wait up to `CLOSE_S` seconds for them, and end the loop."""
        self.is_closing = True
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


#: The outcome of a coroutine, or of a step of it.
Outcome = concurrent.futures.Future[Any]


class _Run:
    """One run of a coroutine in the loop, for a thread that waits for it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any]):
        self._loop = loop
        self._coroutine = coroutine
        self._task: asyncio.Task[Any] | None = None
        self._is_cancelled = False
        self._future: Outcome = concurrent.futures.Future()

    def wait(self, what: str) -> Any:
        """Run the coroutine, and return its value or raise its exception."""
        return self._wait(self._start, self._future, what)

    def _wait(self, begin: Callable[[], object], future: Outcome, what: str) -> Any:
        try:
            begin()
            return future.result()
        except asyncio.CancelledError as error:
            raise _cancelled(what) from error
        except BaseException as error:
            if future.done() and future.exception() is error:
                raise
            return self._end(error, begin, future)

    def _end(self, error: BaseException, begin: Callable[[], object], future: Outcome) -> Any:
        """Cancel the coroutine after its waiting thread was interrupted, and wait for its end.

        The coroutine may clean up, and return or raise anything, as a sync handler may after it has
        caught its soft time limit. If it is just cancelled, the interrupting exception is raised.
        An interruption that ends the process or the greenlet is raised after `CLOSE_S` seconds at
        most, whatever the coroutine does.
        """
        self._is_cancelled = True
        with contextlib.suppress(RuntimeError):
            # The coroutine may not have begun before the interruption; beginning twice is harmless.
            begin()
            self._loop.call_soon_threadsafe(self._cancel)
        if not isinstance(error, Exception):
            concurrent.futures.wait([future], CLOSE_S)
            raise error
        try:
            return future.result()
        except asyncio.CancelledError:
            raise error from None

    def _start(self) -> None:
        with in_state(state_here()):
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._task is not None:
            return
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._done)
        if self._is_cancelled:
            self._task.cancel()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._settle(task, self._future)

    def _settle(self, task: asyncio.Task[Any], future: Outcome) -> None:
        if task.cancelled():
            future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            future.set_exception(error)
        else:
            future.set_result(task.result())


class TwoStepRun:
    """A coroutine that hands a value over to a waiting thread, and resumes at `go_on`.

        async def handle() -> None:
            told = await run.hand_over(value)

        run = TwoStepRun(of="the handler's name")
        value = run.first(handle())
        run.go_on("told")

    It is one task of the process's event loop from beginning to end, since `asyncio.timeout` and
    task groups must be left by the task that has entered them.

    Args:
        of: the handler's name, for errors.
    """

    def __init__(self, *, of: str) -> None:
        self._of = of
        self._own: EventLoop | None = None
        loop = _the_loop()
        if loop.is_here:
            # As in `run_coroutine`: the process's loop waits for this call.
            self._own = loop = EventLoop()
        self._loop = loop
        self._steps: _Steps | None = None

    def first(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine until it hands a value over, or to its end; return the value.

        Raises:
            HandlerCancelled: the coroutine was cancelled, but not by the waiting thread.
            BaseException: the coroutine's exception, or one that interrupted the waiting thread.
        """
        self._steps = steps = _Steps(self._loop, coroutine)
        return steps.wait(self._of)

    async def hand_over(self, value: Any = None, *, error: BaseException | None = None) -> Any:
        """Hand over a value, or an error for `first` to raise; return the argument of `go_on`.

        Raises:
            CancelledError: the process ends meanwhile.
        """
        assert self._steps is not None  # noqa: S101  the coroutine is run by it
        return await self._steps.hand_over(value, error)

    @property
    def is_over(self) -> bool:
        """Whether the coroutine has ended, or has never begun."""
        return self._steps is None or self._steps.is_over

    def go_on(self, told: Any) -> Any:
        """Resume the coroutine, and wait for its end.

        Args:
            told: the value that `hand_over` returns to the coroutine.

        Returns:
            The coroutine's return value; None if it had ended already.

        Raises:
            HandlerCancelled: the coroutine was cancelled, but not by the waiting thread.
            BaseException: the coroutine's exception, or one that interrupted the waiting thread.
        """
        try:
            return None if self._steps is None else self._steps.go_on(told, self._of)
        finally:
            own, self._own = self._own, None
            if own is not None:
                own.close()


class _Steps(_Run):
    """A run with an outcome for each of its two steps."""

    def __init__(self, loop: EventLoop, coroutine: Coroutine[Any, Any, Any]) -> None:
        super().__init__(loop.loop, coroutine)
        self._of = loop
        self._told: asyncio.Future[Any] = loop.loop.create_future()
        self._rest: Outcome = concurrent.futures.Future()
        self._is_handed_over = False

    @property
    def is_over(self) -> bool:
        return (self._rest if self._is_handed_over else self._future).done()

    async def hand_over(self, value: Any, error: BaseException | None) -> Any:
        self._is_handed_over = True
        if error is None:
            self._future.set_result(value)
        else:
            self._future.set_exception(error)
        while True:
            try:
                return await asyncio.shield(self._told)
            except asyncio.CancelledError:
                # The coroutine's own timeout is ignored: it has no work to end while it waits here.
                if self._of.is_closing:
                    raise

    def go_on(self, told: Any, what: str) -> Any:
        if not self._is_handed_over:
            return None
        return self._wait(lambda: self._tell(told), self._rest, what)

    def _tell(self, told: Any) -> None:
        def tell() -> None:
            if not self._told.done():
                self._told.set_result(told)

        self._loop.call_soon_threadsafe(tell)

    def _cancel(self) -> None:
        # Between the steps, no thread waits that could be interrupted.
        if not self._is_handed_over or self._told.done():
            super()._cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._settle(task, self._rest if self._is_handed_over else self._future)


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
        coroutine: the coroutine; it runs in a copy of this context.
        of: the handler's name, for errors.

    Returns:
        The coroutine's return value.

    Raises:
        HandlerCancelled: the coroutine was cancelled, but not by the waiting thread.
        BaseException: the coroutine's exception, or one that interrupted the waiting thread.
    """
    loop = _the_loop()
    if loop.is_here:
        # A coroutine of the loop has called a sync function, and the loop waits for it.
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
    """End the process's event loop, if there is one; the next coroutine gets a new one."""
    global _current
    with _guard:
        current, _current = _current, None
    if current is not None:
        current.close()


def is_loop_running() -> bool:
    """Return whether the caller runs in an event loop."""
    if asyncio._get_running_loop() is None:
        return False
    # Greenlets share their thread's running loop: only the frames show whether it runs this one.
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
    """Start a loop in a thread of its own, or in a greenlet if gevent has replaced threads."""
    if _is_gevent():
        # Imported here, since gevent need not be installed.
        from .gevent_loop import LoopGreenlet

        LoopGreenlet.spawn(run)
    else:
        threading.Thread(target=run, name="cqrs-event-loop", daemon=True).start()


#: The loop of the parent process, kept in a forked process, which does not have the loop's thread.
#: Closing the loop here would break the parent's, which shares its file descriptors.
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
