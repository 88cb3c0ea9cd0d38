"""Middleware of web applications that tells commands from whom they come.

    web = FastAPI()
    web.add_middleware(ContextMiddleware, entries=lambda scope: {"user_id": scope["user"].identity})

Whatever a request sends and records, and whatever that causes in workers, carries the request's
correlation id and the entries; see `CQRS.context`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextvars import copy_context
from typing import Any, Final, TypeAlias

from .dispatch.context import context
from .dispatch.keys import LONGEST_KEY
from .messages.metadata import new_id

#: What is said of a request: texts by names; None for nothing.
Entries: TypeAlias = Mapping[str, str | None]

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

#: The header in which a request and its response carry the correlation id.
HEADER: Final = "X-Correlation-ID"


class ContextMiddleware:
    """An ASGI application around another one, in which each request has a context.

    The correlation id is that of the request's header. If the request has none, or one that is no
    visible ASCII of 1 to 200 characters, it is a new one. The response carries it, too. Websockets
    have a context as long as they are connected.

    Args:
        app: the ASGI application.
        entries: called with the scope of each request; returns what else is said of it, or an
            awaitable of that. It raises what it likes, and the request fails with that. An outer
            middleware that authenticates has written its user into the scope before.
        header: the header's name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        entries: Callable[[Scope], Entries | Awaitable[Entries]] | None = None,
        header: str = HEADER,
    ) -> None:
        self._app = app
        self._entries = entries
        self._header = header.lower().encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request in its context; what is no request goes through."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        found = [value for name, value in scope.get("headers", ()) if name.lower() == self._header]
        correlation_id = _correlation_id(found[0].decode("latin-1") if found else "")
        entries = {} if self._entries is None else self._entries(scope)
        if not isinstance(entries, Mapping):
            entries = await entries

        async def send_with_header(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = (self._header, correlation_id.encode("ascii"))
                headers = [one for one in message.get("headers", ()) if one[0] != self._header]
                message = {**message, "headers": [*headers, own]}
            await send(message)

        with context(correlation_id=correlation_id, **entries):
            await self._app(scope, receive, send_with_header)


class WSGIContextMiddleware:
    """A WSGI application around another one, in which each request has a context.

        application = WSGIContextMiddleware(get_wsgi_application())

    The correlation id is that of the request's header. If the request has none, or one that is no
    visible ASCII of 1 to 200 characters, it is a new one. The response carries it, too. A response
    that is made while it is sent, by a generator, has the context for each of its parts.

    Args:
        app: the WSGI application.
        entries: called with the environment of each request; returns what else is said of it.
        header: the header's name.
    """

    def __init__(
        self,
        app: WSGIApp,
        *,
        entries: Callable[[dict[str, Any]], Entries] | None = None,
        header: str = HEADER,
    ) -> None:
        self._app = app
        self._entries = entries
        self._header = header
        self._key = "HTTP_" + header.upper().replace("-", "_")

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Handle a request in its context."""
        correlation_id = _correlation_id(environ.get(self._key, ""))
        entries = {} if self._entries is None else self._entries(environ)

        def start(status: str, headers: list[tuple[str, str]], *args: Any) -> Any:
            others = [one for one in headers if one[0].lower() != self._header.lower()]
            return start_response(status, [*others, (self._header, correlation_id)], *args)

        with context(correlation_id=correlation_id, **entries):
            body = self._app(environ, start)
            file_wrapper = environ.get("wsgi.file_wrapper")
            is_whole = isinstance(body, list | tuple) or (
                isinstance(file_wrapper, type) and isinstance(body, file_wrapper)
            )
            return body if is_whole else _Body(body)


class _Body:
    """The parts of a response, each of which is made in the context in which the response began."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = parts
        self._inside = copy_context()

    def __iter__(self) -> Iterator[bytes]:
        parts = self._inside.run(iter, self._parts)
        while True:
            try:
                part = self._inside.run(next, parts)
            except StopIteration:
                return
            yield part

    def close(self) -> None:
        """End the response, as its server asks."""
        close = getattr(self._parts, "close", None)
        if close is not None:
            self._inside.run(close)


def _correlation_id(found: str) -> str:
    """Return a request's correlation id as it came if it may be one, else a new one."""
    is_fit = 0 < len(found) <= LONGEST_KEY and all("!" <= letter <= "~" for letter in found)
    return found if is_fit else new_id()
