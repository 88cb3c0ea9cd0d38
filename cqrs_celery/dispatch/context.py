"""Know what is being handled, so that what it sends and records carries its trace."""

from __future__ import annotations

from contextvars import ContextVar

from ..messages.metadata import NO_METADATA, Metadata

#: The metadata of what is being handled, and the name of its handler.
_current: ContextVar[tuple[Metadata, str]] = ContextVar("cqrs_handling", default=(NO_METADATA, ""))


def current_metadata() -> Metadata:
    """Return the metadata for what is recorded or sent now: who began it, what causes it."""
    return _current.get()[0]


def current_handler() -> str:
    """Return module and name of the command's or subscription's function that runs; "" for none."""
    return _current.get()[1]


class handling:  # noqa: N801  used as a function is
    """A context in which everything recorded and sent carries the metadata of what is handled.

    Args:
        metadata: of what is recorded and sent.
        handler: module and name of the function that runs.
    """

    __slots__ = "_handling", "_token"

    def __init__(self, metadata: Metadata, handler: str) -> None:
        self._handling = metadata, handler

    def __enter__(self) -> None:
        self._token = _current.set(self._handling)

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)
