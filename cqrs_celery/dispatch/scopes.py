"""The provided values of one handling: made before the handler is called, closed after the commit.

They are closed in the reverse order, when the session has committed or was rolled back. What was
raised is also raised inside a generator, at its `yield`, so that it can roll back what it holds; it
can't suppress the exception. What it raises itself is the outcome only if it had cancelled the
handler, as a timeout does.

What becomes of an error at closing depends on the commit. If the session has committed something,
that is the outcome, which can't be undone: the error is logged. If it has committed nothing, the
error is the handler's, as if a `with` of its own had raised it. If something was raised before,
that is raised, and the error at closing is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TypeVar

from ..errors import DuplicateCommand, HandlerCancelled, SubscriptionFailed
from ..messages.metadata import Metadata
from ..session.session import Session
from .asking import name_of
from .event_loop import TwoStepRun
from .factories import Factory, Mode, check_plain, manager_of
from .injection import Plan

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The handler, which still needs the values that were made, by the names of its parameters.
Handler = Callable[..., Any]


class Scope:
    """The provided values of one handling.

    Args:
        plan: of the handler.
        handler: its module and name.
        metadata: of what it records and sends.
        tracing: returns the context in which values are closed, so that what is sent there carries
            the trace.
        keeps_when_repeated: whether a handling that has committed before, and returns again, counts
            as one that commits: an event's does, as it comes again until it is done.

    Attributes:
        error: what the handler has raised, if that is no failure of the handling.
        is_committed: whether the session has committed something.
    """

    def __init__(
        self,
        plan: Plan,
        handler: str,
        metadata: Metadata,
        tracing: Callable[[], AbstractContextManager[Any]],
        *,
        keeps_when_repeated: bool = False,
    ) -> None:
        self._plan = plan
        self._handler = handler
        self._metadata = metadata
        self._tracing = tracing
        self._keeps_when_repeated = keeps_when_repeated
        self._opened: list[tuple[Any, Any, bool]] = []
        self._run: TwoStepRun | None = None
        self._has_returned = False
        self.error: BaseException | None = None
        self.is_committed = False

    @property
    def needs_session(self) -> bool:
        """Whether a factory asks for the session."""
        return self._plan.needs_session

    def call(self, function: Handler, session: Session) -> Any:
        """Make the values, and call a sync handler with them; return what it returns."""
        value = function(**self._open(session))
        self._has_returned = True
        return value

    async def call_async(self, function: Handler, session: Session) -> Any:
        """Make the values, and await an async handler with them; return what it returns."""
        value = await function(**await self._open_async(session))
        self._has_returned = True
        return value

    def call_in_loop(self, function: Handler, session: Session) -> Any:
        """Do as `call_async` in the process's event loop, while this thread waits.

        The values are closed by the coroutine that has made them, which waits for the commit.
        """
        self._run = run = TwoStepRun(of=self._handler)

        async def handle() -> BaseException | None:
            value, error = None, None
            try:
                value = await self.call_async(function, session)
            except BaseException as raised:  # noqa: BLE001  raised where the thread waits
                error = raised
            try:
                told = await run.hand_over(value, error=error)
            except asyncio.CancelledError as ended:
                await self._close_async(ended)
                raise
            if isinstance(told, HandlerCancelled) and told.__cause__ is error:
                # By it, a timeout or a task group in a factory knows its own doing.
                told = error
            failure = await self._close_async(told)
            if isinstance(failure, asyncio.CancelledError):
                raise failure
            return failure

        return run.first(handle())

    def _open(self, session: Session) -> dict[str, Any]:
        made = {Session: session, Metadata: self._metadata}
        for factory, arguments in self._plan.steps:
            found = factory.function(**arguments.of(made))
            if factory.mode is Mode.VALUE:
                made[factory.key] = check_plain(factory, found)
            else:
                made[factory.key] = self._enter(factory, found)
        return self._plan.arguments.of(made)

    def _enter(self, factory: Factory, found: Any) -> Any:
        manager = manager_of(factory, found)
        value = manager.__enter__()
        self._opened.append((factory.key, manager, False))
        return value

    async def _open_async(self, session: Session) -> dict[str, Any]:
        made = {Session: session, Metadata: self._metadata}
        for factory, arguments in self._plan.steps:
            found = factory.function(**arguments.of(made))
            if factory.mode is Mode.AWAIT:
                made[factory.key] = await found
            elif factory.mode is Mode.ENTER_ASYNC:
                manager = manager_of(factory, found)
                made[factory.key] = await manager.__aenter__()
                self._opened.append((factory.key, manager, True))
            elif factory.mode is Mode.ENTER:
                made[factory.key] = self._enter(factory, found)
            else:
                made[factory.key] = check_plain(factory, found)
        return self._plan.arguments.of(made)

    # ------------------------------------------------------------ closing

    def run(self, work: Callable[[], T]) -> T:
        """Do the work of a handling, which makes the values, and close them; return its result.

        Raises:
            BaseException: what the work raised; else what closing raised, unless it is committed.
        """
        try:
            with self:
                return work()
        except BaseException as error:
            # A soft time limit may be raised between two lines of the closing. It comes once.
            self._close_rest(error)
            raise

    def _close_rest(self, error: BaseException) -> None:
        """Close what is still open, since the closing was interrupted."""
        if self._run is not None:
            if not self._run.is_over:
                self._close_in_loop(self._run, self._outcome(error))
        elif self._opened:
            self._close(self._outcome(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        seen = self._outcome(error)
        failure = self._close(seen) if self._run is None else self._close_in_loop(self._run, seen)
        if failure is not None:
            raise failure

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure = await self._close_async(self._outcome(error))
        if failure is not None:
            raise failure

    def _outcome(self, error: BaseException | None) -> BaseException | None:
        """Return what the values are told of: what was raised, unless its work is committed."""
        if self._has_returned and isinstance(error, SubscriptionFailed):
            self.is_committed = True
            return None
        is_repetition = self._has_returned and isinstance(error, DuplicateCommand)
        if is_repetition and self._keeps_when_repeated:
            self.is_committed = True
            return None
        return self.error if error is None else error

    def _close(self, error: BaseException | None) -> BaseException | None:
        """Close what was opened; return what is to be raised of what was raised by that."""
        closing = _Closing(self, error)
        with self._tracing():
            while self._opened:
                details = closing.details
                key, manager, _ = self._opened[-1]
                try:
                    self._opened.pop()
                    manager.__exit__(*details)
                except BaseException as raised:  # noqa: BLE001  the others are closed, too
                    closing.note(key, raised)
        return closing.failure

    def _close_in_loop(self, run: TwoStepRun, error: BaseException | None) -> BaseException | None:
        try:
            failure: BaseException | None = run.go_on(error)
        except Exception as raised:  # noqa: BLE001  it was cancelled, or ran out of time
            if not run.is_over:
                run.go_on(raised if error is None else error)
            if error is None and not self.is_committed:
                return raised
            self.log("provided values", raised)
            return None
        return failure

    async def _close_async(self, error: BaseException | None) -> BaseException | None:
        closing = _Closing(self, error)
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in one
        with self._tracing():
            while self._opened:
                key, manager, is_async = self._opened.pop()
                cancellations = task.cancelling()
                try:
                    left = manager.__aexit__ if is_async else manager.__exit__
                    done = left(*closing.details)
                    if is_async:
                        await done
                except BaseException as raised:  # noqa: BLE001  the others are closed, too
                    has_ended = task.cancelling() < cancellations
                    closing.note(key, raised, ends_cancellation=has_ended)
        return closing.failure

    def log(self, key: Any, error: BaseException) -> None:
        """Log what was raised at closing, and is not the outcome."""
        why = "its commit stands" if self.is_committed else "another error is raised"
        logger.error(
            "the %s of %s raised %s at closing; %s",
            name_of(key),
            self._handler,
            type(error).__name__,
            why,
            exc_info=error,
            extra={"provided": name_of(key), "handler": self._handler, "why": str(error)},
        )


class _Closing:
    """What is raised while the values of a scope are closed.

    Args:
        scope: theirs.
        error: what was raised before; None if nothing was.

    Attributes:
        failure: what is to be raised of it.
    """

    def __init__(self, scope: Scope, error: BaseException | None) -> None:
        self._scope = scope
        self._error = error
        self._seen = error
        self.failure: BaseException | None = None

    @property
    def details(self) -> tuple[Any, Any, Any]:
        """What the next value is told, as `__exit__` is."""
        seen = self._seen
        return (None, None, None) if seen is None else (type(seen), seen, seen.__traceback__)

    def note(self, key: Any, raised: BaseException, *, ends_cancellation: bool = False) -> None:
        """Note what closing a value has raised.

        Args:
            key: the value's type.
            raised: the exception.
            ends_cancellation: whether the value took back a cancellation of the handler, as a
                timeout does that has ended it: then what it raises is the outcome.
        """
        if raised is self._seen:
            return
        if ends_cancellation and isinstance(self._seen, asyncio.CancelledError):
            self._error = self._seen = self.failure = raised
        elif not isinstance(raised, Exception):
            # It ends the process, the greenlet or the coroutine.
            self.failure = raised
        elif self._error is not None or self._scope.is_committed or self.failure is not None:
            self._scope.log(key, raised)
        else:
            self.failure = raised
        if self._seen is None:
            self._seen = raised
