"""Know what is being handled, so that what it sends and records carries its trace."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from ..messages.metadata import NO_METADATA, Metadata


class handling:  # noqa: N801  used as a function is
    """A context in which everything recorded and sent carries the metadata of what is handled.

    Args:
        metadata: of what is recorded and sent.
        handler: module and name of the function that runs.
        app: Celery's application that runs it; None if it is not known.
    """

    __slots__ = "_token", "app", "handler", "metadata"

    def __init__(self, metadata: Metadata, handler: str, app: Any = None) -> None:
        self.metadata = metadata
        self.handler = handler
        self.app = app

    def __enter__(self) -> None:
        self._token = _current.set(self)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
        # What it has started may go on, in a copy of this context.
        self.handler = ""


_current: ContextVar[handling] = ContextVar("cqrs_handling", default=handling(NO_METADATA, ""))  # noqa: B039  never changed


def current_metadata() -> Metadata:
    """Return the metadata for what is recorded or sent now: who began it, what causes it."""
    return _current.get().metadata


def current_handler() -> str:
    """Return module and name of the command's or subscription's function that runs; "" for none."""
    return _current.get().handler


def app_of_handler() -> Any:
    """Return Celery's application whose handler runs; None for none."""
    current = _current.get()
    return current.app if current.handler else None
