"""A refusal is a command's outcome: one line at info, class and fields kept, nothing repeated."""

from __future__ import annotations

import copy
import enum
import json
import logging
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.backends.cache import CacheBackend

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Query,
    Refusal,
    Session,
    command_handler,
    query_handler,
    subscribes,
)
from cqrs_celery.dispatch.middleware import log_calls
from cqrs_celery.errors import (
    AggregateNotFound,
    CQRSError,
    MissingAggregateId,
    RegistrationError,
    StaleVersion,
    SubscriptionFailed,
)


class CoinsPaid(Event, name="purse.coins_paid"):
    count: int


class NotEnough(Refusal):
    wanted: int
    found: int


class Closed(Refusal):
    """One with an `__init__` of its own, as users write them."""

    def __init__(self, purse: str, *, since: datetime) -> None:
        super().__init__(f"{purse} is closed since {since:%Y}")
        self.purse = purse
        self.since = since


class Impolite(Refusal):
    """One whose `__init__` calls no other, and whose text is made when it is asked for."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __str__(self) -> str:
        return f"{self.word} is no word for a purse"


class Worded(Refusal):
    """One that adds to its text whenever it is asked for it."""

    amount: int
    currency: str = "EUR"

    def __str__(self) -> str:
        return f"Refused: {super().__str__()} {self.currency}"


class Bare(Refusal):
    """One that declares no fields, and may have any."""


class NotANumber(Refusal, ValueError):
    pass


class Purse(Aggregate, name="PursePurse"):
    pass


class Pay(Command, name="purse.pay", aggregate=Purse, key="id"):
    id: str = "it"
    count: int = 1


class PaySoon(Pay, name="purse.pay_soon", aggregate=Purse, key="id"):
    pass


class MayPay(Query, name="purse.may_pay"):
    pass


#: What happened, and what comes to refuse.
seen = SimpleNamespace(runs=0)

REFUSALS = [
    NotEnough("5 wanted, 3 there", wanted=5, found=3),
    Bare(),
    Bare("5 wanted", wanted=5, found=3),
    Worded("5 wanted", amount=5),
    Worded("5 wanted", amount=5, currency="CHF"),
    Closed("mine", since=datetime(2026, 1, 2, tzinfo=UTC)),
    Impolite("bag"),
    NotANumber("many", price=Decimal("1.50")),
]


def pay_with(command: Pay, session: Session) -> None:
    seen.runs += 1
    purse = session.find(Purse, command.id) or Purse(command.id)
    session.add(purse)
    purse.record(CoinsPaid(count=command.count))
    if command.count > 3:
        raise NotEnough(f"{command.count} wanted, 3 there", wanted=command.count, found=3)


@command_handler(Pay, retry_on=Exception, retry_backoff=1, throws=(KeyError,))
def pay(command: Pay, session: Session) -> None:
    pay_with(command, session)


@command_handler(PaySoon, retry_on=Exception)
async def pay_soon(command: PaySoon, session: Session) -> None:
    pay_with(command, session)


@query_handler(MayPay)
def may_pay(query: MayPay) -> None:
    raise NotEnough("no", wanted=1, found=0)


@subscribes(CoinsPaid)
def count_coins(event: CoinsPaid) -> None:
    if event.count == 2:
        raise NotEnough("an event can't be refused", wanted=2, found=0)


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application in memory, whose tasks run at once."""
    seen.runs = 0
    app = Celery("purse", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://", task_always_eager=True)
    yield CQRS(app, middleware=[log_calls])
    app.close()


def through_json(error: Exception) -> Any:
    """Return an exception as a result backend gives it back that writes JSON."""
    app = Celery("elsewhere", set_as_current=False)
    backend = CacheBackend(app=app, backend="memory")
    kept = json.loads(json.dumps(json.loads(backend.encode(backend.prepare_exception(error)))))
    return backend.exception_to_python(backend.decode(json.dumps(kept)))


def same(found: Any, error: Any) -> bool:
    return (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


# ------------------------------------------------------------ the class


@pytest.mark.parametrize("error", REFUSALS, ids=repr)
def test_it_keeps_class_text_and_fields_wherever_it_goes(error: Refusal) -> None:
    for found in (
        pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error),
        through_json(error), through_json(through_json(error)),
    ):  # fmt: skip
        assert same(found, error)
    assert not isinstance(error, CQRSError)


def test_a_field_that_json_cannot_hold_comes_back_as_a_plain_one_or_as_a_text() -> None:
    class Colour(enum.Enum):
        RED = "red"

    misread = {"__type__": "uuid", "__value__": "x"}  # by Kombu
    error = Bare("no", wanted=object, found={Colour.RED: {1}}, colour=Colour.RED, more=[misread])
    found = through_json(error)
    assert type(found) is Bare
    assert vars(found).pop("more") == repr([misread])
    assert vars(found) == {"wanted": repr(object), "found": {"red": [1]}, "colour": "red"}


def test_a_note_is_no_field() -> None:
    error = NotEnough("no", wanted=1, found=0)
    error.add_note("it was a Monday")
    assert vars(through_json(error)) == {"wanted": 1, "found": 0}
    assert vars(pickle.loads(pickle.dumps(error))) == {"wanted": 1, "found": 0}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"wnted": 1, "found": 0},
            "NotEnough has no field 'wnted'; it has found, wanted. Did you mean 'wanted'?",
        ),
        ({"wanted": 1, "found": 0, "x": 1}, "no field 'x'; it has found, wanted. Annotate it in"),
        ({"found": 0}, "NotEnough was made without wanted, which its class declares. Pass wanted="),
        ({}, "NotEnough was made without found, wanted, which"),
    ],
)
def test_the_fields_that_a_class_declares_are_those_that_it_has(
    fields: dict[str, Any], text: str
) -> None:
    with pytest.raises(TypeError) as refused:
        NotEnough("no", **fields)
    assert text in str(refused.value)


def test_a_subclass_has_the_fields_of_its_bases_and_defaults_may_be_left_out() -> None:
    class FarTooFew(NotEnough):
        by: int = 1

    error = FarTooFew("no", wanted=2, found=1)
    assert (error.wanted, error.by) == (2, 1)
    with pytest.raises(TypeError, match="FarTooFew was made without wanted"):
        FarTooFew("no", found=1)


def test_an_init_of_its_own_may_set_the_declared_fields_itself() -> None:
    class Late(Refusal):
        days: int

        def __init__(self, days: int) -> None:
            super().__init__(f"{days} days late")
            self.days = days

    assert Late(3).days == 3


def test_fields_in_slots_which_would_be_lost_are_refused() -> None:
    with pytest.raises(TypeError, match=r"Slotted has __slots__, whose values would be lost on"):

        class Slotted(Refusal):
            __slots__ = ("count",)


@pytest.mark.parametrize("name", ["args", "add_note", "with_traceback"])
def test_a_field_that_hides_an_attribute_of_every_exception_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"NotEnough has a field '{name}'.*Rename"):
        NotEnough("no", **{name: 1})


def test_a_text_that_other_code_changes_is_kept_with_the_fields() -> None:
    error = NotEnough("no", wanted=1, found=0)
    error.args = ("no, while it was paid",)
    assert str(error) == "no, while it was paid"
    assert same(through_json(error), error)


# ------------------------------------------------------------ as an outcome


@pytest.mark.parametrize("cls", [Pay, PaySoon])
@pytest.mark.parametrize("how", ["execute", "delay"])
def test_a_refused_command_commits_nothing_and_is_not_tried_again(
    cqrs: CQRS, how: str, cls: Any
) -> None:
    # given a handler that is tried again for every exception
    def ask(*args: Any, **options: Any) -> Any:
        if how == "execute":
            return cqrs.execute(*args, **options)
        return cqrs.send_command(*args, **options).get()

    def refused() -> Any:
        with pytest.raises(NotEnough, match="5 wanted, 3 there") as it:
            ask(cls(count=5), idempotency_key="it")
        return it.value

    # when it refuses, then that is the outcome, with its fields
    error = refused()
    assert (error.wanted, error.found) == (5, 3)
    assert seen.runs == 1
    assert cqrs.store.read_all() == []
    # and nothing is recorded of it: under the same key, it runs again
    refused()
    assert seen.runs == 2


@pytest.mark.parametrize("cls", [Pay, PaySoon])
def test_celery_logs_one_line_at_info_without_a_traceback(
    cqrs: CQRS, cls: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = cqrs.send_command(cls(count=5))
    assert result.state == "FAILURE"
    (record,) = [one for one in caplog.records if one.name == "celery.app.trace"]
    assert record.levelname == "INFO"
    assert "raised expected: NotEnough('5 wanted, 3 there')" in record.getMessage()
    assert not record.exc_info


def test_what_the_handler_throws_besides_is_still_expected(cqrs: CQRS) -> None:
    throws: Any = cqrs.app.tasks["purse.pay"].throws
    assert throws == (Refusal, StaleVersion, AggregateNotFound, KeyError)


def test_middleware_tells_a_refusal_from_a_failure(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="cqrs_celery.dispatch.middleware")
    for ask in (lambda: cqrs.execute(Pay(count=5)), lambda: cqrs.query(MayPay())):
        with pytest.raises(NotEnough):
            ask()
    # given an event that can't be recorded
    with pytest.raises(MissingAggregateId):
        cqrs.execute(Pay(id="", count=1))
    told = [(one.levelname, word_of(one)) for one in caplog.records]
    assert told == [("INFO", "refused"), ("INFO", "refused"), ("WARNING", "failed")]
    assert "NotEnough: 5 wanted, 3 there" in caplog.records[0].getMessage()


def word_of(record: logging.LogRecord) -> str:
    found = re.search(r" (refused|failed) after \S+ ms: ", record.getMessage())
    assert found, record.getMessage()
    return found[1]


def test_a_subscription_refuses_nothing_its_refusal_is_a_failure(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SubscriptionFailed, match="an event can't be refused"):
        cqrs.execute(Pay(count=2))
    told = {word_of(one) for one in caplog.records if one.name.endswith("middleware")}
    assert told == {"failed"}
    assert NotEnough not in cqrs.app.tasks["purse.count_coins"].dont_autoretry_for


@pytest.mark.parametrize("retry_on", [NotEnough, (KeyError, Refusal)])
def test_a_refusal_that_is_to_be_tried_again_is_a_mistake(retry_on: Any) -> None:
    class Borrow(Command, name="purse.borrow"):
        pass

    with pytest.raises(RegistrationError, match="is a Refusal, and a refusal is never tried again"):

        @command_handler(Borrow, retry_on=retry_on)
        def borrow(command: Command) -> None: ...
