"""An aggregate that was made and not added is an error: its events would be lost."""

from __future__ import annotations

import contextvars
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Session,
    applies,
    command_handler,
    subscribes,
)
from cqrs_celery.errors import SessionError, SubscriptionFailed
from cqrs_celery.testing.scenario import InMemoryCQRS, in_memory


class Baked(Event, name="bakery.baked"):
    loaves: int = 1


class Sold(Event, name="bakery.sold"):
    pass


class Batch(Aggregate, name="BakeryBatch"):
    loaves: int = 0

    @classmethod
    def bake(cls, id: str) -> Batch:
        batch = cls(id)
        batch.record(Baked())
        batch.record(Sold())
        return batch

    @applies(Baked)
    def _baked(self, event: Baked) -> None:
        self.loaves += event.loaves


class Bake(Command, name="bakery.bake", aggregate=Batch, key="id"):
    id: str
    how: str = "forget"


class BakeSoon(Command, name="bakery.bake_soon", aggregate=Batch, key="id"):
    id: str


#: What the handler's aggregates are seen by, once it has returned.
made: list[Any] = []


@command_handler(Bake)
def bake(command: Bake, session: Session) -> None:
    if command.how == "add early":
        batch = Batch(command.id)
        session.add(batch)
        batch.record(Baked())
    elif command.how == "add late":
        session.add(Batch.bake(command.id))
    elif command.how == "look":
        made.append(Batch(command.id))
    elif command.how == "commit elsewhere":
        with cqrs_of(session).session() as other:
            other.add(Batch.bake(command.id))
    elif command.how == "twice":
        session.add(Batch.bake(command.id))
        Batch(command.id).record(Sold())
    else:
        batch = Batch.bake(command.id)
        made.append(weakref.ref(batch))
        if command.how == "refuse":
            raise ValueError("no flour")


@command_handler(BakeSoon)
async def bake_soon(command: BakeSoon) -> None:
    Batch.bake(command.id)


@subscribes(Sold, max_retries=0)
def bake_more(event: Sold) -> None:
    Batch.bake("more")


running: list[InMemoryCQRS] = []


def cqrs_of(session: Session) -> InMemoryCQRS:
    return running[-1]


@pytest.fixture
def cqrs() -> Iterator[InMemoryCQRS]:
    made.clear()
    with in_memory("bakery") as cqrs:
        running.append(cqrs)
        with cqrs.history():
            yield cqrs
    running.clear()


EXPECTED = (
    "BakeryBatch-rye recorded Baked, Sold in a handler, but is not in its session, so that would be"
    " lost. Add what the handler makes: session.add(aggregate); and use what session.get returns."
    " Nothing was committed."
)


@pytest.mark.parametrize("command", [Bake(id="rye"), BakeSoon(id="rye")], ids=["sync", "async"])
def test_a_forgotten_add_is_an_error_that_says_what_to_do(
    cqrs: InMemoryCQRS, command: Command
) -> None:
    with pytest.raises(SessionError) as refused:
        cqrs.execute(command)
    assert str(refused.value) == EXPECTED
    assert not cqrs.store.read_all()
    # and it is the outcome of one that is sent
    with pytest.raises(SessionError, match="BakeryBatch-rye recorded Baked, Sold in a handler"):
        command.delay()
    assert not cqrs.store.read_all()


def test_a_subscriber_that_forgets_it_fails_too(cqrs: InMemoryCQRS) -> None:
    cqrs.execute(Bake(id="rye", how="add late"))
    stored = cqrs.store.read_all()[-1]
    with pytest.raises(SubscriptionFailed) as failed:
        CQRS._deliver(cqrs, [stored])
    assert isinstance(failed.value.__cause__, SessionError)
    assert str(failed.value.__cause__) == EXPECTED.replace("rye", "more")


def test_a_second_instance_of_what_is_in_the_session_is_found(cqrs: InMemoryCQRS) -> None:
    with pytest.raises(SessionError, match="BakeryBatch-rye recorded Sold in a handler"):
        cqrs.execute(Bake(id="rye", how="twice"))
    assert not cqrs.store.read_all()


@pytest.mark.parametrize("how", ["add early", "add late", "look", "commit elsewhere"])
def test_what_is_added_or_committed_or_has_recorded_nothing_is_fine(
    cqrs: InMemoryCQRS, how: str
) -> None:
    cqrs.execute(Bake(id="rye", how=how))
    assert len(cqrs.store.read_all()) == {"add early": 1, "look": 0}.get(how, 2)


def test_a_handler_that_refuses_may_leave_what_it_has_made(cqrs: InMemoryCQRS) -> None:
    with pytest.raises(ValueError, match="no flour"):
        cqrs.execute(Bake(id="rye", how="refuse"))
    # and nothing holds it afterwards
    gc.collect()
    assert made[0]() is None


IN_A_BLOCK = (
    "BakeryBatch-rye recorded Baked, Sold in a `with` block, but is not in its session, so that"
    " would be lost. Add what the `with` block makes: session.add(aggregate); and use what"
    " session.get returns. Nothing was committed."
)


def bake_in_a_block(cqrs: InMemoryCQRS, *, error: Exception | None = None) -> None:
    with cqrs.session() as session:
        session.add(Batch.bake("oats"))
        Batch.bake("rye")
        if error is not None:
            raise error


def test_a_forgotten_add_in_a_block_is_an_error_too(cqrs: InMemoryCQRS) -> None:
    with pytest.raises(SessionError) as refused:
        bake_in_a_block(cqrs)
    assert str(refused.value) == IN_A_BLOCK
    assert not cqrs.store.read_all()


def test_an_error_of_the_block_is_not_hidden_by_what_it_forgot(cqrs: InMemoryCQRS) -> None:
    with pytest.raises(ValueError, match="no flour"):
        bake_in_a_block(cqrs, error=ValueError("no flour"))


def test_of_blocks_in_one_another_the_outermost_asks_what_was_forgotten(
    cqrs: InMemoryCQRS,
) -> None:
    # given an aggregate of the outer session that first records in the inner one's block
    with cqrs.session() as outer:
        rye = Batch("rye")
        outer.add(rye)
        with cqrs.session() as inner:
            inner.add(Batch.bake("oats"))
            rye.record(Baked())
            wheat = Batch.bake("wheat")
        outer.add(wheat)
    # then nothing was forgotten
    assert len(cqrs.store.read_all()) == 5
    # but what is in neither is
    with pytest.raises(SessionError, match="BakeryBatch-spelt"), cqrs.session(), cqrs.session():
        Batch.bake("spelt")


def test_a_block_that_commits_on_and_on_keeps_nothing_of_what_it_committed(
    cqrs: InMemoryCQRS,
) -> None:
    with cqrs.session() as session:
        batch = Batch.bake("rye")
        session.add(batch)
        session.commit()
        reference = weakref.ref(batch)
        del batch
        gc.collect()
        assert reference() is None
        # and what was forgotten before a commit may be added after it
        oats = Batch.bake("oats")
        session.commit()
        session.add(oats)
    assert len(cqrs.store.read_all()) == 4


def test_a_block_may_end_in_another_context_than_it_began_in(cqrs: InMemoryCQRS) -> None:
    # given a session that a web framework opens in one thread, and closes in another
    session = cqrs.session()
    contextvars.copy_context().run(session.__enter__)
    session.add(Batch.bake("rye"))
    contextvars.copy_context().run(session.__exit__, None, None, None)
    assert len(cqrs.store.read_all()) == 2


def test_outside_a_handler_nothing_is_watched(cqrs: InMemoryCQRS) -> None:
    batch = Batch.bake("rye")
    reference = weakref.ref(batch)
    del batch
    gc.collect()
    assert reference() is None
