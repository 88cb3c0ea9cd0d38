"""Check calls that run in this process, and defer what a handler sends in eager mode.

A command that a handler executes in the middle of its work has a commit of its own. That commit
stands even if the handler fails, and is made again whenever the handler is repeated. If it changes
an aggregate that the handler has loaded, it even causes the conflict that repeats the handler. So
`execute` is refused inside a handler. In eager mode, the tasks that a handler sends run after the
handler has finished, as in a worker.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from celery import states
from celery.result import EagerResult
from celery.utils.dispatch import Signal
from vine import promise

from ..errors import InsideEventLoop, NestedExecution
from ..session.off_loop import off_loop
from .context import current_handler
from .event_loop import is_loop_running

#: Sent when a task is put off, by the task, in the order of sending. The test kit listens to it.
put_off = Signal(name="cqrs_put_off", providing_args={"task_id", "args"})


def check_nested(name: str, how: str) -> None:
    """Check that no handler runs here.

    Args:
        name: the name of the class of the command to carry out.
        how: the call that was made for it, such as "execute".

    Raises:
        NestedExecution: a handler runs here.
    """
    handler = current_handler()
    if handler:
        raise NestedExecution(
            f"{how} was called for the command {name} inside the handler {handler}. Its commit"
            " would stand whatever becomes of the handler's, and be made again whenever the handler"
            " is repeated. Nothing was done. Change what it would change by the handler's own"
            f" session, which commits everything at once; or send it: {name}(…).delay(). In eager"
            " mode a chain, a group or a plain task that a handler sends runs inside of it, too.",
            command=name,
            handler=handler,
        )


def check_no_loop(verb: str, message: Any) -> None:
    """Check that the caller does not run in an event loop.

    Args:
        verb: the name of the called method; with `_async`, that of the one to await instead.
        message: the command or query that was given to it.

    Raises:
        InsideEventLoop: the caller runs in an event loop.
    """
    if is_loop_running():
        name = type(message).__qualname__
        raise InsideEventLoop(
            f"{verb}({name}) was called where an event loop runs, which would stand still until it"
            f" has returned. Nothing was done. Write: await cqrs.{verb}_async({name}(…))",
            message_type=name,
            instead=f"{verb}_async",
        )


class Later:
    """The tasks that handlers have sent in eager mode, in the order of sending."""

    def __init__(self) -> None:
        self._calls: deque[Callable[[], Any]] = deque()
        self.is_over = False

    def add(self, call: Callable[[], Any]) -> None:
        """Add a call that runs a task."""
        self._calls.append(call)

    def run(self) -> Exception | None:
        """Run all calls, with those added meanwhile; return the first exception that one raises."""
        failure: Exception | None = None
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception as error:  # noqa: BLE001  the other calls still run
                failure = failure or error
        self.is_over = True
        return failure


_later: ContextVar[Later | None] = ContextVar("cqrs_later", default=None)


def later() -> Later | None:
    """Return the tasks to run later, if a handler runs here; None if a task runs at once."""
    found = _later.get()
    return found if found is not None and current_handler() and not found.is_over else None


class sending_later:  # noqa: N801  used as a function is
    """A block at whose end the tasks run that handlers inside have sent in eager mode.

    If blocks are nested, the tasks run at the end of the outermost one.

    Raises:
        Exception: the exception that was raised inside; else the first one of a sent task, if
            Celery's `task_eager_propagates` lets it through.
    """

    __slots__ = "_sent", "_token"

    def __enter__(self) -> None:
        self._sent: Later | None = None
        if _later.get() is None:
            self._sent = Later()
            self._token = _later.set(self._sent)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        sent = self._sent
        if sent is None:
            return
        failure = None
        try:
            if kind is None or issubclass(kind, Exception):
                failure = sent.run()
        finally:
            _later.reset(self._token)
        if failure is not None and kind is None:
            raise failure


@asynccontextmanager
async def sending_later_async() -> AsyncIterator[None]:
    """Return a block like `sending_later`, which does not block the event loop."""
    if _later.get() is not None:
        yield
        return
    sent = Later()
    token = _later.set(sent)
    try:
        try:
            yield
        except Exception:
            await off_loop(sent.run)
            raise
        failure = await off_loop(sent.run)
    finally:
        _later.reset(token)
    if failure is not None:
        raise failure


class SentResult(EagerResult):
    """The result of an eager task that runs later; it is pending until then."""

    def __init__(self, id: str, name: str) -> None:
        super().__init__(id, None, states.PENDING, name=name)
        self.on_ready = promise()

    def ready(self) -> bool:
        """Return whether the task has run."""
        return bool(self.state != states.PENDING)

    def get(self, *args: Any, **options: Any) -> Any:
        """Return the task's return value, or raise its exception.

        Raises:
            NestedExecution: the task has not run yet.
        """
        if not self.ready():
            check_nested(self._name, "the result's get()")
        return super().get(*args, **options)

    wait = get

    def settle(self, result: EagerResult) -> None:
        """Take the outcome of the task that has run."""
        self._result, self._state = result._result, result._state
        self._traceback = result._traceback
        self.on_ready(self)
