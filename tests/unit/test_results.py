"""A command's outcome is the same wherever it is asked for, and however often."""

from __future__ import annotations

import asyncio
import json
import pickle
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NoReturn

import celery
import msgspec
import pytest
from celery.backends.cache import CacheBackend
from celery.result import AsyncResult, EagerResult

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    CommandResult,
    Event,
    Session,
    applies,
    command_handler,
)
from cqrs_celery import errors as all_errors
from cqrs_celery.dispatch.results import CommandAsyncResult, Returned
from cqrs_celery.errors import (
    ConcurrencyError,
    CQRSError,
    HandlerSignatureError,
    InvalidText,
    LockTimeout,
    UnsupportedCelery,
    UnwritableMessage,
)
from cqrs_celery.testing.scenario import InMemoryCQRS, Scenario, in_memory


class ResultsDone(Event, name="results.done"):
    pass


class Bill(msgspec.Struct):
    total: Decimal
    at: datetime
    counts: dict[int, float]


class Remark(msgspec.Struct):
    id: str
    note: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remark) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class ResultsThing(Aggregate):
    @applies(ResultsDone)
    def _done(self, event: ResultsDone) -> None: ...


BILL = Bill(Decimal("1.50"), datetime(2026, 1, 1, tzinfo=UTC), {1: 0.5})


class ResultsPrice(Command, name="results.price"):
    id: str


class ResultsBill(Command, name="results.bill"):
    id: str


class ResultsPlain(Command, name="results.plain"):
    values: Any = None


class ResultsAny(Command, name="results.any"):
    id: str


class ResultsInt(Command, name="results.int"):
    id: str


class ResultsFree(Command, name="results.free"):
    id: str


RETURNED: list[Any] = []


@command_handler(ResultsAny)
def give_any(command: ResultsAny, session: Session):
    thing = session.find(ResultsThing, command.id) or ResultsThing(command.id)
    session.add(thing)
    thing.record(ResultsDone())
    return RETURNED[0]


@command_handler(ResultsInt)
def give_int(command: ResultsInt) -> Decimal:
    return 3  # type: ignore[return-value]


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
        (float, 3.0),
        # A type that is not defined says nothing.
        ("NotDefined", [1]),
        (NoReturn, [1]),
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
        # What is of another type than the handler declares.
        (None, 5),
        (str, 5),
        (int, "three"),
        (CQRS, "x"),
        # What Celery's JSON reads as something else.
        (Any, [{"a": {"__type__": "uuid", "__value__": "x"}}]),
        # What an equality of its own hides.
        (Remark, Remark("a", (1,))),
    ],
)
def test_a_returned_value_that_would_be_read_as_another_is_refused(
    annotation: Any, value: Any
) -> None:
    with pytest.raises(UnwritableMessage, match="Nothing was committed"):
        of(annotation).write(value, of="c")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("1.5"), "Decimal('1.5') of the type Decimal, which would be read as '1.5'"),
        ((1, 2), "(1, 2) of the type tuple"),
        ({1}, "{1} of the type set"),
        (float("nan"), "nan of the type float, which would be read as None"),
        (object(), "a value that JSON has no form for"),
    ],
)
def test_what_could_not_be_a_result_is_refused_by_execute_and_by_a_scenario_too(
    cqrs: InMemoryCQRS, value: Any, text: str
) -> None:
    # given
    RETURNED[:] = [value]
    command = ResultsAny(id="1")
    # when
    for run in (
        lambda: cqrs.execute(command),
        lambda: cqrs.execute(command, idempotency_key="k"),
        lambda: asyncio.run(cqrs.execute_async(command)),
        lambda: command.delay().get(),
    ):
        with pytest.raises(UnwritableMessage) as refused:
            run()
        # then
        assert "the handler of command" in str(refused.value)
        assert text in str(refused.value)
    Scenario(cqrs).when(command).raises(UnwritableMessage, match="Nothing was committed")
    assert cqrs.store.read_all() == []


def test_a_value_that_is_equal_in_the_declared_type_is_it_by_every_way(cqrs: InMemoryCQRS) -> None:
    command = ResultsInt(id="1")
    for result in (
        cqrs.execute(command),
        cqrs.execute(command, idempotency_key="k"),
        command.delay().get(),
    ):
        assert repr(result.value) == "Decimal('3')"
    Scenario(cqrs).when(command).returns(Decimal(3))


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        (complex, "complex"),
        (ResultsThing, "ResultsThing"),
        (list[ResultsThing | None], "ResultsThing"),
        (dict[str, tuple[msgspec.Raw, int]], "RawType"),
        (Iterator[int], "Iterator"),
        (Bill | Remark, "nion"),
    ],
)
def test_a_handler_that_declares_a_result_without_a_form_in_json_is_refused(
    annotation: Any, named: str
) -> None:
    def handler(command: ResultsFree) -> None: ...

    handler.__annotations__["return"] = annotation
    with pytest.raises(HandlerSignatureError) as refused:
        command_handler(ResultsFree)(handler)
    text = str(refused.value)
    assert f"{__name__}." in text
    assert named in text
    assert "says its annotation, and a command's result is written as JSON" in text


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
