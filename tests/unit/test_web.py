"""Middleware of web applications: what a request sends is told from whom it comes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any
from wsgiref.util import FileWrapper, setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cqrs_celery.dispatch.context import current_metadata
from cqrs_celery.messages.metadata import NO_METADATA
from cqrs_celery.web import ContextMiddleware, WSGIContextMiddleware

HEADER = "X-Correlation-ID"


def said() -> dict[str, Any]:
    metadata = current_metadata()
    return {"correlation_id": metadata.correlation_id, **metadata.context}


async def in_loop(request: Request) -> JSONResponse:
    return JSONResponse(said(), headers={HEADER: "of the application"})


def in_thread(request: Request) -> JSONResponse:
    return JSONResponse(said())


async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_json(said())
    await socket.close()


def user_of(scope: Any) -> dict[str, str | None]:
    sent = dict(scope["headers"]).get(b"x-user")
    return {"user_id": sent.decode() if sent else None}


async def user_later(scope: Any) -> dict[str, str | None]:
    await asyncio.sleep(0)
    return user_of(scope)


ROUTES = [Route("/loop", in_loop), Route("/thread", in_thread), WebSocketRoute("/ws", websocket)]


def ask_web(
    path: str, *requests: dict[str, str], header: str = HEADER, entries: Any = None
) -> list[httpx.Response]:
    """Return what a web application answers to requests with these headers, all at once."""
    web = Starlette(routes=ROUTES)
    web.add_middleware(ContextMiddleware, entries=entries, header=header)

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(web)
        async with httpx.AsyncClient(transport=transport, base_url="http://web") as client:
            raw = [[(k.encode(), v.encode("latin-1")) for k, v in one.items()] for one in requests]
            return list(await asyncio.gather(*(client.get(path, headers=one) for one in raw)))

    return asyncio.run(ask_all())


@pytest.mark.parametrize("entries", [user_of, user_later])
@pytest.mark.parametrize("path", ["/loop", "/thread"])
def test_an_asgi_request_has_its_correlation_id_and_its_user(path: str, entries: Any) -> None:
    # when a request comes to an application that says who the user is
    (answer,) = ask_web(path, {HEADER: "request-1", "X-User": "u7"}, entries=entries)
    # then what it does has its id and its user
    assert answer.json() == {"correlation_id": "request-1", "user_id": "u7"}
    # and the answer has the id, once
    assert answer.headers.get_list(HEADER) == ["request-1"]
    assert current_metadata() == NO_METADATA


def test_a_websocket_has_a_context_while_it_is_connected() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"x-correlation-id", b"request-1"), (b"x-user", b"u7")]
    scope = {"type": "websocket", "path": "/ws", "headers": headers, "query_string": b""}
    web = ContextMiddleware(Starlette(routes=ROUTES), entries=user_of)
    asyncio.run(web(scope, receive, send))
    assert [one["type"].partition(".")[2] for one in sent] == ["accept", "send", "close"]
    assert json.loads(sent[1]["text"]) == {"correlation_id": "request-1", "user_id": "u7"}


def test_a_scope_without_headers_has_a_new_correlation_id() -> None:
    seen: list[str] = []

    async def app(*given: Any) -> None:
        seen.append(current_metadata().correlation_id)

    given: Any = ({"type": "http"}, None, None)
    asyncio.run(ContextMiddleware(app)(*given))
    assert len(seen[0]) == 36


def test_what_is_no_request_goes_through() -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    given: Any = ({"type": "lifespan"}, object(), object())
    asyncio.run(ContextMiddleware(app)(*given))
    assert seen == [given]


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 201, "a\x7f", "\xff"])
def test_a_request_without_a_fit_correlation_id_gets_a_new_one(sent: str | None) -> None:
    answers = ask_web("/loop", *[{} if sent is None else {HEADER: sent}] * 2)
    ids = [answer.json()["correlation_id"] for answer in answers]
    assert ids[0] != ids[1]
    for answer, own in zip(answers, ids, strict=True):
        assert answer.headers[HEADER] == own != sent
        assert answer.json() == {"correlation_id": own}


def test_the_requests_of_one_loop_are_told_apart() -> None:
    sent = [{"X-Request-ID": f"r{n}"} for n in range(20)]
    answers = ask_web("/thread", *sent, header="X-Request-ID")
    assert [answer.json()["correlation_id"] for answer in answers] == [f"r{n}" for n in range(20)]


def whole(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), (HEADER.lower(), "its own")])
    return [repr(said()).encode()]


class Parts:
    """A response in parts, as frameworks make them."""

    closed: dict[str, Any] | None = None

    def __init__(self, environ: Any, start_response: Any) -> None:
        start_response("200 OK", [("Content-Type", "text/plain")])

    def __iter__(self) -> Any:
        for _ in range(2):
            yield repr(said()).encode()

    def close(self) -> None:
        Parts.closed = said()


def ask(app: Any, **environ: Any) -> tuple[list[bytes], list[tuple[str, str]]]:
    """Return the parts of a response and its headers, as a server asks for them."""
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    headers: list[tuple[str, str]] = []

    def start_response(status: str, found: Any, *_: Any) -> Any:
        headers.extend(found)
        return lambda data: None

    body: Any = validator(app)(environ, start_response)
    try:
        return list(body), headers
    finally:
        body.close()


@pytest.mark.parametrize("app", [whole, Parts])
def test_a_wsgi_request_has_its_correlation_id_and_its_user(app: Any) -> None:
    # given an application that says who the user is
    web = WSGIContextMiddleware(app, entries=lambda environ: {"user_id": environ["REMOTE_USER"]})
    # when a request comes
    parts, headers = ask(web, HTTP_X_CORRELATION_ID="request-1", REMOTE_USER="u7")
    # then whatever it does has its id and its user, also while the response is sent, and ends
    expected = {"correlation_id": "request-1", "user_id": "u7"}
    assert parts == [repr(expected).encode()] * (1 if app is whole else 2)
    assert app is whole or Parts.closed == expected
    # and the answer has the id, once
    assert [value for name, value in headers if name.lower() == HEADER.lower()] == ["request-1"]
    assert current_metadata() == NO_METADATA


def test_a_file_goes_to_the_server_as_it_is(tmp_path: Any) -> None:
    (tmp_path / "file").write_bytes(b"data")
    with (tmp_path / "file").open("rb") as file:
        wrapped = FileWrapper(file)
        environ = {"wsgi.file_wrapper": FileWrapper}
        assert WSGIContextMiddleware(lambda *_: wrapped)(environ, lambda *_: None) is wrapped


def test_a_wsgi_request_without_a_fit_correlation_id_gets_a_new_one() -> None:
    found = {ask(WSGIContextMiddleware(whole), HTTP_X_CORRELATION_ID="a b")[0][0] for _ in "ab"}
    assert len(found) == 2
    assert not any(b"a b" in one for one in found)
