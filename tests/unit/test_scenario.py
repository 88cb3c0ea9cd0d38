"""A scenario tests handlers and subscriptions in one process, and says clearly what was wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import current_app

from cqrs_celery import (
    Aggregate,
    Command,
    Event,
    Message,
    Query,
    RecordedEvent,
    Session,
    applies,
    command_handler,
    query_handler,
    subscribes,
)
from cqrs_celery.dispatch.middleware import Middleware, time_calls
from cqrs_celery.errors import UnwritableMessage
from cqrs_celery.testing.scenario import InMemoryCQRS, Scenario


class PlayStocked(Event, name="play.stocked"):
    count: int


class PlaySold(Event, name="play.sold"):
    count: int


class PlayOrdered(Event, name="play.ordered"):
    count: int


class PlayShelf(Aggregate, name="PlayShelf"):
    count: int = 0

    @applies(PlayStocked)
    def _stocked(self, event: PlayStocked) -> None:
        self.count += event.count

    @applies(PlaySold)
    def _sold(self, event: PlaySold) -> None:
        self.count -= event.count


class PlayOrder(Aggregate, name="PlayOrder"):
    pass


class PlaySell(Command, name="play.sell", aggregate=PlayShelf, key="id"):
    id: str
    count: int


class PlayReorder(Command, name="play.reorder", aggregate=PlayOrder, key="id"):
    id: str


class PlayTellBuyer(Command, name="elsewhere.tell_buyer"):
    """Is handled by another service."""

    id: str


class PlayStock(Query, name="play.stock"):
    id: str


class PlayBell(Message, name="play.bell"):
    tone: str


class SoldOut(Exception):
    pass


@command_handler(PlaySell)
def sell(command: PlaySell, session: Session) -> int:
    shelf = session.get(PlayShelf, command.id)
    if shelf.count < command.count:
        raise SoldOut(f"{shelf.count} left")
    shelf.record(PlaySold(count=command.count))
    return shelf.count


@command_handler(PlayReorder)
def reorder(command: PlayReorder, session: Session) -> None:
    order = PlayOrder(f"order-{command.id}")
    order.record(PlayOrdered(count=10))
    session.add(order)


@query_handler(PlayStock)
def stock(query: PlayStock) -> str:
    return f"stock of {query.id}"


@subscribes(PlaySold, subscription="play.orders")
def order_more(event: PlaySold, recorded: RecordedEvent[PlaySold]) -> None:
    PlayReorder(id=recorded.aggregate_id).delay()
    PlayTellBuyer(id=recorded.aggregate_id).delay()
    if event.count == 13:
        raise RuntimeError("unlucky")


@subscribes(PlayBell, subscription="play.bells")
def answer_bell(message: PlayBell) -> None:
    if message.tone == "high":
        current_app.cqrs.publish(PlayBell(tone="low"))


@pytest.fixture
def cqrs_application() -> str:
    return "play"


@pytest.fixture
def shop(scenario: Scenario) -> Scenario:
    return scenario.given(PlayShelf, "42", PlayStocked(count=20))


def test_a_command_s_events_and_what_follows_from_them_are_seen_in_order(shop: Scenario) -> None:
    (
        shop.when(PlaySell(id="42", count=2))
        .then(PlaySold(count=2), PlayOrdered(count=10))
        .sends(PlayReorder(id="42"), PlayTellBuyer(id="42"))
        .publishes()
        .returns(18)
    )


def test_the_past_reaches_no_subscription(scenario: Scenario) -> None:
    scenario.given(PlayShelf, "42", PlayStocked(count=20), PlaySold(count=1))

    assert scenario.cqrs.sent == []
    assert len(scenario.cqrs.store.read_all()) == 2


def test_a_second_given_goes_on_with_the_aggregate(shop: Scenario) -> None:
    shop.given(PlayShelf, "42", PlayStocked(count=1)).when(PlaySell(id="42", count=21)).returns(0)


def test_events_that_happen_now_are_handled_by_subscriptions(shop: Scenario) -> None:
    (
        shop.happened(PlayShelf, "42", PlaySold(count=1))
        .then(PlayOrdered(count=10))
        .sends(PlayReorder(id="42"), PlayTellBuyer(id="42"))
    )


def test_an_exception_of_a_handler_is_the_outcome(shop: Scenario) -> None:
    error = shop.when(PlaySell(id="42", count=21)).raises(SoldOut, match="20 left")
    assert str(error) == "20 left"


def test_an_exception_of_a_subscription_is_the_outcome_too(shop: Scenario) -> None:
    outcome = shop.when(PlaySell(id="42", count=13))
    outcome.raises(RuntimeError, match="unlucky")
    assert outcome.events == (PlaySold(count=13), PlayOrdered(count=10))


def test_a_command_that_could_not_be_sent_is_refused_as_it_would_be(shop: Scenario) -> None:
    wrong: Any = "one"
    error = shop.when(PlaySell(id="42", count=wrong)).raises(UnwritableMessage)
    assert "$.count" in str(error)


def test_a_query_s_answer_is_the_result(scenario: Scenario) -> None:
    scenario.when(PlayStock(id="42")).returns("stock of 42").then().sends()


def test_a_published_message_is_handled_and_answered(scenario: Scenario) -> None:
    scenario.when(PlayBell(tone="high")).publishes(PlayBell(tone="low"))


def test_a_function_may_do_anything(shop: Scenario) -> None:
    shop.when(lambda: PlaySell(id="42", count=1).delay().get()["value"]).returns(19).then(
        PlaySold(count=1), PlayOrdered(count=10)
    ).sends(PlaySell(id="42", count=1), PlayReorder(id="42"), PlayTellBuyer(id="42"))


@pytest.mark.parametrize(
    ("check", "expected", "found"),
    [
        (lambda r: r.then(PlaySold(count=3)), "PlaySold(count=3)", "PlaySold(count=2)"),
        (lambda r: r.sends(), "nothing", "PlayReorder(id='42')"),
        (lambda r: r.returns(1), "1", "18"),
        (lambda r: r.publishes(PlayBell(tone="x")), "PlayBell(tone='x')", "nothing"),
        (lambda r: r.raises(SoldOut), "SoldOut", "PlaySold(count=2)"),
    ],
)
def test_a_failure_says_what_was_given_done_expected_and_found(
    shop: Scenario, check: Any, expected: str, found: str
) -> None:
    with pytest.raises(AssertionError) as failed:
        check(shop.when(PlaySell(id="42", count=2)))

    lines = str(failed.value).splitlines()
    assert lines[0] == "given    PlayShelf 42: PlayStocked(count=20)"
    assert lines[1] == "when     PlaySell(id='42', count=2)"
    assert lines[2] == f"expected {expected}"
    assert lines[3] == f"found    {found}"


def test_each_test_has_an_application_of_its_own(in_memory_cqrs: InMemoryCQRS) -> None:
    assert in_memory_cqrs.store.read_all() == []
    assert in_memory_cqrs.app.main == "play"
    assert current_app.main == "play"


class TestMiddleware:
    """The application's own middleware takes part."""

    @pytest.fixture
    def seen(self) -> list[str]:
        return []

    @pytest.fixture
    def cqrs_middleware(self, seen: list[str]) -> list[Middleware]:
        return [time_calls(lambda call, seconds: seen.append(call.name))]

    def test_middleware_is_around_handlers_and_subscriptions(
        self, shop: Scenario, seen: list[str]
    ) -> None:
        shop.when(PlaySell(id="42", count=1)).then(PlaySold(count=1), PlayOrdered(count=10))
        # What the subscription sends runs when everything before it is through, as in a worker.
        assert seen == ["play.sold", "play.sell", "play.reorder"]


def test_the_plugin_is_found_by_pytest_alone(tmp_path: Path) -> None:
    # given a test that imports nothing of the package
    (tmp_path / "test_it.py").write_text(
        "def test_it(scenario, in_memory_cqrs):\n"
        "    assert in_memory_cqrs.app.main == 'test'\n"
        "    scenario.when(lambda: 5).returns(5).then()\n"
    )
    # when pytest runs it
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "."]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    # then the fixtures are there
    assert "1 passed" in result.stdout, result.stdout + result.stderr
