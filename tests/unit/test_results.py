"""A command's outcome is the same wherever it is asked for, and however often."""

from __future__ import annotations

import json
import pickle
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import celery
import msgspec
import pytest
from celery.backends.cache import CacheBackend
from celery.result import AsyncResult, EagerResult

from cqrs_celery import CQRS, Command, CommandResult, command_handler
from cqrs_celery import errors as all_errors
from cqrs_celery.dispatch.results import CommandAsyncResult, Returned
from cqrs_celery.errors import (
    ConcurrencyError,
    CQRSError,
    InvalidText,
    LockTimeout,
    UnsupportedCelery,
    UnwritableMessage,
)
from cqrs_celery.testing.scenario import in_memory


class Bill(msgspec.Struct):
    total: Decimal
    at: datetime
    counts: dict[int, float]


BILL = Bill(Decimal("1.50"), datetime(2026, 1, 1, tzinfo=UTC), {1: 0.5})


class ResultsPrice(Command, name="results.price"):
    id: str


class ResultsBill(Command, name="results.bill"):
    id: str


class ResultsPlain(Command, name="results.plain"):
    values: Any = None


@command_handler(ResultsPrice)
def price(command: ResultsPrice) -> Decimal:
    return Decimal("1.50")


@command_handler(ResultsBill)
def bill(command: ResultsBill) -> Bill:
    return BILL


@command_handler(ResultsPlain)
def plain(command: ResultsPlain):
    return {"date": datetime(2026, 1, 1)} if command.values == "a date" else command.values


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    with in_memory("results") as cqrs:
        yield cqrs


@pytest.mark.parametrize(
    ("command", "value"), [(ResultsPrice(id="1"), Decimal("1.50")), (ResultsBill(id="1"), BILL)]
)
def test_execute_get_and_a_repeated_command_have_the_same_outcome(
    cqrs: CQRS, command: Command, value: Any
) -> None:
    # given
    first = cqrs.execute(command, idempotency_key="once")
    # when
    others = [
        cqrs.execute(command),
        cqrs.execute(command, idempotency_key="once"),
        cqrs.send_command(command).get(),
        cqrs.send_command(command, idempotency_key="once").get(),
        command.delay().get(),
    ]
    # then
    for outcome in (first, *others):
        assert type(outcome) is CommandResult
        assert repr(outcome.value) == repr(value)


def test_a_value_without_annotation_is_plain_or_refused(cqrs: CQRS) -> None:
    values = {"a": [1, 2.5, None, True, "x"]}
    for _ in range(2):
        assert cqrs.execute(ResultsPlain(values=values), idempotency_key="k").value == values
    with pytest.raises(UnwritableMessage) as refused:
        cqrs.execute(ResultsPlain(values="a date"), idempotency_key="other")
    text = str(refused.value)
    assert "results.plain:other returned a value that can't be its result" in text
    assert "at \"['date']\"" in text
    assert "annotate the handler" in text


def of(annotation: Any) -> Returned:
    def handler() -> None: ...

    handler.__annotations__["return"] = annotation
    return Returned(handler)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dict[int, str], {1: "a"}),
        (tuple[int, ...], (1, 2)),
        (set[uuid.UUID], {uuid.UUID(int=1)}),
        (bytes, b"x"),
        (float, 2.5),
        (None, None),
        (Decimal | None, Decimal("NaN")),
        # What says another type than it returns stays plain.
        (None, 5),
        (str, 5),
        (CQRS, "x"),
        ("NotDefined", [1]),
    ],
)
def test_a_returned_value_is_read_as_it_was(annotation: Any, value: Any) -> None:
    returned = of(annotation)
    text = returned.write(value, of="c")
    assert repr(returned.read(text)) == repr(value)
    assert repr(returned.convert(json.loads(text))) == repr(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, (1, 2)),
        (Any, {1: 2}),
        (Any, Decimal("1.5")),
        (Decimal, "1.5"),
        (float, float("nan")),
        (float | None, float("nan")),
        (Any, object()),
        (str, "\ud800"),
    ],
)
def test_a_returned_value_that_would_be_read_as_another_is_refused(
    annotation: Any, value: Any
) -> None:
    with pytest.raises(UnwritableMessage, match="Nothing was committed"):
        of(annotation).write(value, of="c")


def test_a_value_whose_declared_type_has_changed_since_is_read_as_plain() -> None:
    assert of(int).read('"1.50"') == "1.50"
    assert of(int).convert("1.50") == "1.50"


# ------------------------------------------------------------ through a result backend


@pytest.fixture
def app() -> Iterator[celery.Celery]:
    changes = {"result_backend": "cache+memory://", "cqrs_event_store": "memory://"}
    app = celery.Celery("results", changes=changes, set_as_current=False)
    CQRS(app)
    yield app
    app.close()


def test_an_async_result_gets_the_result_in_the_handlers_type(app: celery.Celery) -> None:
    # given what a worker has written for a task
    task = app.tasks["results.bill"]
    wire = {"value": json.loads(msgspec.json.encode(BILL)), "position": 7, "is_repeated": False}
    backend: CacheBackend = app.backend
    backend.store_result("one", wire, "SUCCESS")
    # when
    result = task.AsyncResult("one")
    # then
    assert isinstance(result, CommandAsyncResult)
    assert result.get(timeout=5) == CommandResult(value=BILL, position=7)
    assert result.result["position"] == result.get()["position"] == 7
    with pytest.raises(KeyError):
        result.get()["more"]


def test_without_the_handler_the_value_stays_plain(app: celery.Celery) -> None:
    app.backend.store_result(
        "two", {"value": "1.50", "position": None, "is_repeated": True}, "SUCCESS"
    )
    result = CommandAsyncResult("two", app=app)
    assert result.get(timeout=5) == CommandResult(value="1.50", is_repeated=True)
    app.backend.store_result("three", ["something", "else"], "SUCCESS")
    assert CommandAsyncResult("three", app=app).get(timeout=5) == ["something", "else"]


@pytest.mark.parametrize(
    "error",
    [
        ConcurrencyError("it moved on", stream="a-1", expected=5, found=7),
        LockTimeout("locked", aggregate="a-1", holder="w1", waited_s=1.5),
        InvalidText("a NUL", text="\x00"),
        UnsupportedCelery("old", celery_version="5", kombu_version="5", missing=("a", "b")),
        CQRSError("no fields"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_fields_through_a_json_result(
    app: celery.Celery, error: CQRSError
) -> None:
    # given
    app.backend.store_result("failed", error, "FAILURE")
    # when
    with pytest.raises(type(error)) as raised:
        AsyncResult("failed", app=app).get(timeout=5)
    # then
    assert str(raised.value) == str(error)
    found = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(raised.value).items()}
    assert found == vars(error)


def test_every_error_can_be_made_again_from_its_arguments() -> None:
    classes = [c for c in vars(all_errors).values() if isinstance(c, type)]
    for cls in [c for c in classes if issubclass(c, CQRSError)]:
        error = cls("what happened", field=1)
        again = cls(*json.loads(json.dumps(error.args)))
        assert (str(again), vars(again)) == ("what happened", {"field": 1}), cls


def test_what_an_error_is_given_later_is_kept_too() -> None:
    error = CQRSError("not sent", message_id="1", repeat_with={})
    error.amend(repeat_with={"message_id": "1"}, tried=3)
    expected = {"message_id": "1", "repeat_with": {"message_id": "1"}, "tried": 3}
    for again in (CQRSError(*error.args), pickle.loads(pickle.dumps(error))):
        assert (str(again), vars(again)) == ("not sent", expected)
    # and one that had none
    bare = CQRSError("not sent")
    bare.amend(tried=3)
    assert vars(CQRSError(*bare.args)) == {"tried": 3}


def test_an_eager_result_is_celerys_own(cqrs: CQRS) -> None:
    assert isinstance(cqrs.send_command(ResultsPrice(id="1")), EagerResult)
