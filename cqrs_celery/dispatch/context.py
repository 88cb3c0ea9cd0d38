"""The current message's metadata, for everything that its handler sends and records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import msgspec

from ..messages.metadata import NO_METADATA, Metadata, frozen, new_id
from ..store.refusals import check_text
from .keys import checked_key


class handling:  # noqa: N801  used as a function is
    """A context in which everything that is recorded and sent carries the same metadata.

    Args:
        metadata: the metadata of what is recorded and sent.
        handler: the module and name of the function that runs.
        app: the Celery application that runs it; None if it is not known.
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
        # Threads or coroutines that the handler has started may go on, in a copy of this context.
        self.handler = ""


_current: ContextVar[handling] = ContextVar("cqrs_handling", default=handling(NO_METADATA, ""))  # noqa: B039  never changed


#: The most entries of a context, and the most characters of a name.
MOST_ENTRIES: Final = 16
LONGEST_NAME: Final = 64


@contextmanager
def context(*, correlation_id: str | None = None, **entries: str | None) -> Iterator[Metadata]:
    """Return a block whose messages and events carry a context, such as the user's id.

        with cqrs.context(correlation_id=request_id, user_id="u7"):
            PlaceOrder(id="42").delay()

    Everything that these messages cause carries this context too, in any worker. A handler reads it
    as `metadata.context["user_id"]`, a subscription as `recorded.metadata.context`. A block inside
    another one adds to its context. Inside a handler, a block affects the messages that the handler
    sends; the events of its session carry the context of the handler's own message.

    Args:
        correlation_id: the id of the trace, 1 to 200 characters; None for the one of the
            surrounding block or handler, or else a new one.
        entries: texts of 1 to 200 characters, by names of at most 64; None removes the entry of a
            surrounding block. There are at most 16, with those of the surrounding blocks.

    Yields:
        The metadata of what is sent inside.

    Raises:
        ValueError: a text is empty or too long, or there are too many entries.
        InvalidText: a text has a NUL, or half of a surrogate pair. It is a ValueError, too.
    """
    outer = _current.get()
    with handling(_with_context(outer.metadata, correlation_id, entries), outer.handler, outer.app):
        yield _current.get().metadata


def _with_context(
    metadata: Metadata, correlation_id: str | None, entries: dict[str, str | None]
) -> Metadata:
    context = {**metadata.context}
    for name, text in entries.items():
        check_text(name, "a name in a context")
        if len(name) > LONGEST_NAME:
            raise ValueError(
                f"a context's names are of at most {LONGEST_NAME} characters; found {len(name)}:"
                f" {name[:LONGEST_NAME]}…"
            )
        if text is None:
            context.pop(name, None)
        else:
            context[name] = checked_key(text, what=f"{name} of a context")
    if len(context) > MOST_ENTRIES:
        raise ValueError(
            f"a context has at most {MOST_ENTRIES} entries, with those of the surrounding blocks;"
            f" found {len(context)}: {', '.join(context)}. Every event keeps them: leave out what"
            " can be looked up"
        )
    if correlation_id is not None:
        checked_key(correlation_id, what="a correlation_id")
    return msgspec.structs.replace(
        metadata,
        correlation_id=correlation_id or metadata.correlation_id or new_id(),
        context=frozen(context),
    )


def current_metadata() -> Metadata:
    """Return the metadata for what is recorded or sent now: its trace and its context."""
    return _current.get().metadata


def current_handler() -> str:
    """Return module and name of the running command's or subscription's function, or ""."""
    return _current.get().handler


def app_of_handler() -> Any:
    """Return the Celery application whose handler runs, or None for none."""
    current = _current.get()
    return current.app if current.handler else None
