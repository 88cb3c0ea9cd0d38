"""Celery's state of the running task, kept for coroutines that share a thread.

Celery keeps `current_task`, its request and `current_app` for each thread. The coroutines of many
tasks run in one thread, so each step of a coroutine runs with the state of its own task, whichever
coroutine ran before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

from celery import _state as celery_state


class State(NamedTuple):
    """Celery's state of the running task: its application, the task and its request."""

    app: Any
    task: Any
    request: Any


_state: ContextVar[State | None] = ContextVar("cqrs_celery_state", default=None)


def state_here() -> State:
    """Return Celery's state in this thread."""
    task = celery_state._task_stack.top
    return State(
        celery_state._tls.current_app, task, task.request_stack.top if task is not None else None
    )


@contextmanager
def in_state(state: State) -> Iterator[None]:
    """Start the coroutines of this block in a task's state."""
    token = _state.set(state)
    try:
        yield
    finally:
        _state.reset(token)


def task_in_state(
    loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
) -> asyncio.Task[Any]:
    """Create a task that runs a coroutine in this context's state; a task factory for a loop."""
    context = options.get("context")
    state = _state.get() if context is None else context.get(_state)
    if state is not None and asyncio.iscoroutine(coroutine):
        coroutine = _Stepped(coroutine, state)
    return asyncio.Task(coroutine, loop=loop, **options)


class _Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that runs every step in a task's state."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], state: State) -> None:
        self._coroutine = coroutine
        self._state = state
        self.__name__ = getattr(coroutine, "__name__", type(coroutine).__name__)
        self.__qualname__ = getattr(coroutine, "__qualname__", self.__name__)

    def send(self, value: Any) -> Any:
        """Run a step."""
        before = self._enter()
        try:
            return self._coroutine.send(value)
        finally:
            self._leave(before)

    def throw(self, *error: Any) -> Any:
        """Run a step that begins with an exception."""
        before = self._enter()
        try:
            return self._coroutine.throw(*error)
        finally:
            self._leave(before)

    def close(self) -> None:
        """End the coroutine."""
        self._coroutine.close()

    def __await__(self) -> Any:
        return self._coroutine.__await__()

    def _enter(self) -> Any:
        app, task, request = self._state
        before = celery_state._tls.current_app
        celery_state._tls.current_app = app
        if task is not None:
            celery_state._task_stack.push(task)
            task.request_stack.push(request)
        return before

    def _leave(self, before: Any) -> None:
        celery_state._tls.current_app = before
        task = self._state.task
        if task is not None:
            task.request_stack.pop()
            celery_state._task_stack.pop()
