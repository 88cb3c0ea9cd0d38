"""Know what is being handled, so that what it sends and records carries its trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..messages.metadata import NO_METADATA, Metadata

_current: ContextVar[Metadata] = ContextVar("cqrs_metadata", default=NO_METADATA)
_handler: ContextVar[str] = ContextVar("cqrs_handler", default="")


def current_metadata() -> Metadata:
    """Return the metadata for what is recorded or sent now: who began it, what causes it."""
    return _current.get()


def current_handler() -> str:
    """Return module and name of the command's or subscription's function that runs; "" for none."""
    return _handler.get()


@contextmanager
def handling(metadata: Metadata, handler: str) -> Iterator[None]:
    """Make everything recorded and sent inside carry this metadata, and know its handler."""
    token, name = _current.set(metadata), _handler.set(handler)
    try:
        yield
    finally:
        _handler.reset(name)
        _current.reset(token)
