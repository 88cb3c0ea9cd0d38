"""A command is a request body of FastAPI's and a type of Pydantic's; what does not fit is a 422."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from fastapi import Body, FastAPI
from pydantic import BaseModel, TypeAdapter, ValidationError

from cqrs_celery import Command, Event, Query, Session, command_handler, query_handler
from cqrs_celery.messages.unknown import unknown_fields_of
from cqrs_celery.testing.scenario import InMemoryCQRS, in_memory


class Line(msgspec.Struct):
    article: str
    count: Annotated[int, msgspec.Meta(ge=1)]


class Order(Command, name="web.order"):
    id: str
    lines: list[Line]
    price: Decimal = Decimal(0)
    due: datetime | None = None


class SetRate(Command, name="web.set_rate", unknown_fields="refuse"):
    id: str
    rate: float = 0
    more: Any = None


class Ordered(Event, name="web.ordered"):
    id: str


class HowMany(Query, name="web.how_many"):
    article: str


class Tree(msgspec.Struct):
    children: list[Tree] = []


class Plant(Command, name="web.plant"):
    tree: Tree


class Count(Command, name="web.count", unknown_fields="keep"):
    by_place: dict[int, float]
    more: Any = None


@command_handler(Order)
def order(command: Order, session: Session) -> int:
    return sum(line.count for line in command.lines)


@query_handler(HowMany)
def how_many(query: HowMany) -> int:
    return len(query.article)


class Client:
    """Ask a web application in this process."""

    def __init__(self, web: FastAPI) -> None:
        self._transport = httpx.ASGITransport(web, raise_app_exceptions=True)

    def get(self, path: str) -> httpx.Response:
        return asyncio.run(self._ask("GET", path, None))

    def post(self, path: str, json: Any = None, **request: Any) -> httpx.Response:
        return asyncio.run(self._ask("POST", path, json, **request))

    async def _ask(self, method: str, path: str, json: Any, **request: Any) -> httpx.Response:
        async with httpx.AsyncClient(transport=self._transport, base_url="http://web") as client:
            return await client.request(method, path, json=json, **request)


@pytest.fixture
def client() -> Iterator[Client]:
    """Run a web application whose bodies are commands and queries."""
    with in_memory("web") as cqrs:
        yield Client(web_application(cqrs))


def web_application(cqrs: InMemoryCQRS) -> FastAPI:
    web = FastAPI()

    @web.post("/orders", status_code=202)
    def post_order(command: Annotated[Order, Body()]) -> dict[str, Any]:
        result = command.delay().get()
        return {"id": command.id, "value": result["value"]}

    @web.post("/rates")
    def post_rate(command: Annotated[SetRate, Body()]) -> None: ...

    @web.post("/how-many")
    def ask(query: Annotated[HowMany, Body()]) -> int:
        answer: int = cqrs.query(query)
        return answer

    @web.get("/last")
    def last() -> Ordered:
        return Ordered(id="7")

    return web


BOLT = {"article": "bolt", "count": 3}
BODY = {"id": "7", "lines": [BOLT, {"article": "nut", "count": 4}]}


def test_a_command_is_a_body_and_is_sent(client: Client) -> None:
    answer = client.post("/orders", json={**BODY, "price": "1.50", "due": "2026-01-02T03:04:05Z"})
    assert (answer.status_code, answer.json()) == (202, {"id": "7", "value": 7})
    assert client.post("/how-many", json={"article": "bolt"}).json() == 4
    assert client.get("/last").json() == {"id": "7"}


@pytest.mark.parametrize(
    ("body", "kind", "place", "text"),
    [
        ({"id": 7, "lines": []}, "message_type", ["id"], "Expected `str`, got `int`"),
        ({"lines": []}, "missing", ["id"], "Object missing required field `id`"),
        (
            {**BODY, "lines": [BOLT, {"article": "nut", "count": "2"}]},
            "message_type", ["lines", 1, "count"], "Expected `int`, got `str`",
        ),
        (
            {"id": "7", "lines": [{"article": "bolt", "count": 0}]},
            "message_type", ["lines", 0, "count"], "Expected `int` >= 1",
        ),
        (
            {"id": "7", "lines": [{"count": 1}]},
            "missing", ["lines", 0, "article"], "Object missing required field `article`",
        ),
        ({**BODY, "price": "{much}"}, "message_type", ["price"], "Invalid decimal string"),
        ([1], "message_type", [], "Expected `object`, got `array`"),
    ],
)  # fmt: skip
def test_a_malformed_body_is_a_422_that_says_where(
    client: Client, body: Any, kind: str, place: list[Any], text: str
) -> None:
    answer = client.post("/orders", json=body)
    assert answer.status_code == 422
    (detail,) = answer.json()["detail"]
    assert (detail["type"], detail["loc"], detail["msg"]) == (kind, ["body", *place], text)


@pytest.mark.parametrize(
    ("body", "place", "found"),
    [
        ('{"id": "7", "rate": NaN}', ["rate"], "nan"),
        ('{"id": "7", "rate": 1e999}', ["rate"], "inf"),
        ('{"id": "\\ud800"}', [], r"{'id': '\ud800'}"),
        ('{"id": "7", "more": -Infinity}', [], "{'id': '7', 'more': -inf}"),
        ('{"id": "7", "more": "\\udfff"}', [], r"{'id': '7', 'more': '\udfff'}"),
        ('{"id": "7", "\\ud800": 1}', [], r"{'id': '7', '\ud800': 1}"),
        ('{"id": "7", "rate": "x"}', ["rate"], "x"),
        ('{"rate": 1.5}', ["id"], {"rate": 1.5}),
    ],
)
def test_a_body_that_an_answer_cannot_repeat_is_a_422_too(
    client: Client, body: str, place: list[Any], found: Any
) -> None:
    json_header = {"content-type": "application/json"}
    answer = client.post("/rates", content=body, headers=json_header)
    assert answer.status_code == 422, answer.text
    (detail,) = answer.json()["detail"]
    assert detail["loc"][: 1 + len(place)] == ["body", *place]
    assert detail["input"] == found


def test_the_body_of_a_command_stands_in_openapi(client: Client) -> None:
    body = client.get("/openapi.json").json()["paths"]["/orders"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert body["required"] is True
    assert schema["required"] == ["id", "lines"]
    line = schema["properties"]["lines"]["items"]
    assert line["properties"]["count"] == {"type": "integer", "minimum": 1}
    assert schema["properties"]["due"]["anyOf"][0]["type"] == "string"
    assert "$ref" not in str(schema)


def test_a_command_is_a_field_of_a_model() -> None:
    class Envelope(BaseModel):
        command: Order
        note: str = ""

    # given a model made from JSON, and one from an instance
    read = Envelope.model_validate_json('{"command": {"id": "7", "lines": [], "price": "1.5"}}')
    assert read.command == Order(id="7", lines=[], price=Decimal("1.5"))
    made = Envelope(command=Order(id="7", lines=[], due=datetime(2026, 1, 2, tzinfo=UTC)))
    # then both come back from what they are written as
    for one in (read, made):
        assert Envelope.model_validate_json(one.model_dump_json()) == one
    with pytest.raises(ValidationError) as refused:
        Envelope.model_validate({"command": {"id": 7, "lines": []}})
    assert refused.value.errors()[0]["loc"] == ("command", "id")


def test_a_body_is_read_as_a_worker_reads_it() -> None:
    counts = TypeAdapter(Count)
    # given keys that are no texts, and a field that the class does not have
    read = counts.validate_json('{"by_place": {"7": 1.5}, "by": "Ann"}')
    assert read == Count(by_place={7: 1.5})
    assert unknown_fields_of(read) == {"by": "Ann"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"by_place": {7: float("nan")}}, "by_place"),
        ({"by_place": {}, "more": {"__type__": "decimal", "__value__": "1"}}, "__type__"),
    ],
)
def test_a_body_that_could_not_be_sent_is_refused_too(body: Any, text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        TypeAdapter(Count).validate_python(body)


def test_a_type_that_holds_itself_has_a_schema_with_an_end() -> None:
    schema = TypeAdapter(Plant).json_schema()
    children = schema["properties"]["tree"]["properties"]["children"]
    assert children["items"] == {"type": "object", "title": "Tree"}


def test_nothing_needs_pydantic() -> None:
    code = (
        "import sys; sys.modules['pydantic'] = sys.modules['pydantic_core'] = None;"
        "import cqrs_celery; print(cqrs_celery.Command.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "Command\n"
