"""Know what is being handled, so that what it sends and records carries its trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from ..messages.metadata import NO_METADATA, Metadata

_current: ContextVar[Metadata] = ContextVar("cqrs_metadata", default=NO_METADATA)


def current_metadata() -> Metadata:
    """Return the metadata for what is recorded or sent now: who began it, what causes it."""
    return _current.get()


@contextmanager
def handling(metadata: Metadata) -> Iterator[None]:
    """Make everything recorded and sent inside carry this metadata."""
    token = _current.set(metadata)
    try:
        yield
    finally:
        _current.reset(token)
