"""What a failed handler's repetition may rest on, and what is never repeated."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, applies, command_handler
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.errors import (
    AggregateExists,
    ConcurrencyError,
    HandlerCancelled,
    StoreUnavailable,
)
from cqrs_celery.store.reading import replica_may_answer

#: What the tests see and steer of the handlers.
seen = SimpleNamespace()


class BasketPacked(Event, name="baskets.packed"):
    first: str


class PackedBasket(Aggregate):
    first: str = ""

    @applies(BasketPacked)
    def _packed(self, event: BasketPacked) -> None:
        self.first = event.first


class PackBasket(Command, name="baskets.pack", aggregate=PackedBasket, key="id"):
    id: str
    things: list[str]


class PackBasketSoon(PackBasket, name="baskets.pack_soon", aggregate=PackedBasket, key="id"):
    pass


class WeaveBasket(Command, name="baskets.weave", aggregate=PackedBasket, key="id"):
    id: str


def pack_with(command: PackBasket, session: Session) -> str:
    seen.runs += 1
    basket = session.find(PackedBasket, command.id) or PackedBasket(command.id)
    if seen.raises:
        raise seen.raises.pop()
    first = command.things.pop(0)
    session.add(basket)
    basket.record(BasketPacked(first=first))
    return first


@command_handler(PackBasket)
def pack(command: PackBasket, session: Session) -> str:
    return pack_with(command, session)


@command_handler(PackBasketSoon)
async def pack_soon(command: PackBasketSoon, session: Session) -> str:
    return pack_with(command, session)


@command_handler(WeaveBasket)
def weave(command: WeaveBasket, session: Session) -> None:
    seen.runs += 1
    basket = PackedBasket(command.id)
    session.add(basket)
    basket.record(BasketPacked(first="nothing"))


class UnsureStore(MemoryEventStore):
    """A store with a replica, whose answers to appends can be lost."""

    def __init__(self) -> None:
        super().__init__(on_commit=lambda events: None)
        self.fails: list[Exception] = []
        self.loses_answers = False

    def read_stream(self, *args: Any, **options: Any) -> Any:
        replica_may_answer()
        return super().read_stream(*args, **options)

    def append(self, *args: Any, **options: Any) -> Any:
        if self.fails:
            raise self.fails.pop()
        committed = super().append(*args, **options)
        if self.loses_answers:
            raise StoreUnavailable("the answer was lost")
        return committed


@pytest.fixture
def store() -> UnsureStore:
    return UnsureStore()


@pytest.fixture
def cqrs(store: UnsureStore) -> CQRS:
    seen.__dict__.update(runs=0, raises=[])
    return CQRS(Celery("baskets", broker="memory://", set_as_current=False), store=store)


def by_execute(cqrs: CQRS, cls: type[PackBasket], things: list[str]) -> Any:
    return cqrs.execute(cls(id="it", things=things))


def by_execute_async(cqrs: CQRS, cls: type[PackBasket], things: list[str]) -> Any:
    return asyncio.run(cqrs.execute_async(cls(id="it", things=things)))


WAYS = pytest.mark.parametrize("way", [by_execute, by_execute_async])
KINDS = pytest.mark.parametrize("cls", [PackBasket, PackBasketSoon])
Way = Callable[[CQRS, type[PackBasket], list[str]], Any]


@WAYS
@KINDS
def test_a_commit_whose_answer_is_lost_is_not_made_again_for_a_replicas_sake(
    cqrs: CQRS, store: UnsureStore, cls: type[PackBasket], way: Way
) -> None:
    # given a handler that reads from a replica, and an answer that is lost behind its commit
    store.loses_answers = True
    # then that is the outcome: everything may be there, and is
    with pytest.raises(StoreUnavailable, match="the answer was lost"):
        way(cqrs, cls, ["a", "b"])
    assert seen.runs == 1
    assert len(store.read_all()) == 1


@WAYS
@KINDS
def test_a_handler_that_is_repeated_gets_its_command_as_it_came(
    cqrs: CQRS, store: UnsureStore, cls: type[PackBasket], way: Way
) -> None:
    # given another writer that is quicker, and a handler that takes things out of its command
    store.fails = [ConcurrencyError("quicker", stream="baskets", expected=1, found=2)]
    things = ["a", "b"]
    # then the second run decides on the same command
    assert way(cqrs, cls, things).value == "a"
    assert seen.runs == 2
    # and the caller's is as it was
    assert things == ["a", "b"]


@KINDS
def test_a_handler_that_was_cancelled_is_not_repeated(cqrs: CQRS, cls: type[PackBasket]) -> None:
    # given a handler that has read from a replica, and is cancelled, as where its process ends
    seen.raises = [HandlerCancelled("cancelled", handler="pack")]
    with pytest.raises(HandlerCancelled):
        cqrs.execute(cls(id="it", things=["a"]))
    assert seen.runs == 1


def test_what_is_made_anew_without_a_look_though_it_exists_is_refused_at_once(
    cqrs: CQRS, store: UnsureStore
) -> None:
    cqrs.execute(WeaveBasket(id="it"))
    seen.runs = 0
    # when it is made again
    with pytest.raises(AggregateExists) as refused:
        cqrs.execute(WeaveBasket(id="it"))
    # then nothing is repeated, and the error says what to do
    assert seen.runs == 1
    assert str(refused.value) == (
        "PackedBasket-it exists already, at version 1, but was added as a new aggregate without"
        " looking for it. Nothing was written, and repeating the command can't help. Look first:"
        " session.find(PackedBasket, 'it') returns it, or None."
    )
    error = refused.value
    assert (error.stream, error.expected, error.found) == ("PackedBasket-it", 0, 1)
    # and a lost race to make one is a race
    store.fails = [ConcurrencyError("quicker", stream="PackedBasket-new", expected=0, found=1)]
    assert cqrs.execute(PackBasket(id="new", things=["a"])).value == "a"


def test_what_is_no_command_is_not_executed_sent_or_asked(cqrs: CQRS) -> None:
    event = BasketPacked(first="a")
    for use in (cqrs.execute, cqrs.send_command, cqrs.query):
        for wrong in (event, {"id": "it"}, PackBasket):
            with pytest.raises(TypeError, match=r"^a (command|query) was expected, an instance"):
                use(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError) as refused:
        cqrs.query(WeaveBasket(id="it"))  # type: ignore[arg-type]
    assert str(refused.value) == (
        "a query was expected, an instance of a class below Query; found the command WeaveBasket."
        " A command is carried out by cqrs.execute(…), or sent by its delay()."
    )
    with pytest.raises(TypeError, match=r"An event is recorded by an aggregate"):
        asyncio.run(cqrs.execute_async(event))  # type: ignore[arg-type]
