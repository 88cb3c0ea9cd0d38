"""A handler executes no command: it is refused, and what it sends in eager mode runs later."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, chain

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Message,
    Session,
    applies,
    command_handler,
    subscribes,
)
from cqrs_celery.errors import NestedExecution, SubscriptionFailed


class Laid(Event, name="nest.laid"):
    by: str


class Nest(Aggregate, name="NestNest"):
    eggs: int = 0

    @applies(Laid)
    def _laid(self, event: Laid) -> None:
        self.eggs += 1


class Lay(Command, name="nest.lay", aggregate=Nest, key="id"):
    id: str = "it"


class Visit(Command, name="nest.visit", aggregate=Nest, key="id"):
    """Lay an egg, and have another command carried out in the middle of that."""

    id: str = "it"


class VisitSoon(Visit, name="nest.visit_soon", aggregate=Nest, key="id"):
    pass


class Refuse(Command, name="nest.refuse"):
    pass


class Chirped(Message, name="nest.chirped"):
    pass


#: What a handler and a subscription do in their middle, and what ran.
world = SimpleNamespace(inside=None, at_event=None, ran=[], sent=[], cqrs=None)


def nest(session: Session, id: str) -> Nest:
    found = session.find(Nest, id)
    if found is None:
        found = Nest(id)
        session.add(found)
    return found


@command_handler(Lay)
def lay(command: Lay, session: Session) -> int:
    world.ran.append("lay")
    it = nest(session, command.id)
    it.record(Laid(by="lay"))
    return it.eggs


@command_handler(Visit, lock="always")
def visit(command: Visit, session: Session) -> int:
    world.ran.append("visit")
    it = nest(session, command.id)
    it.record(Laid(by="visit"))
    world.inside()
    return it.eggs


@command_handler(VisitSoon)
async def visit_soon(command: VisitSoon, session: Session) -> int:
    world.ran.append("visit_soon")
    it = nest(session, command.id)
    it.record(Laid(by="visit"))
    await asyncio.sleep(0)
    found = world.inside()
    if asyncio.iscoroutine(found):
        await found
    await asyncio.gather(asyncio.sleep(0))
    return it.eggs


@command_handler(Refuse)
def refuse(command: Refuse) -> None:
    world.ran.append("refuse")
    raise ValueError("no visitors")


@subscribes(Laid)
def look(event: Laid) -> None:
    world.ran.append(f"look at {event.by}")
    if world.at_event and event.by == "visit":
        world.at_event()


@subscribes(Chirped)
def listen(message: Chirped) -> None:
    world.ran.append("listen")


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give the current application, in memory and eager."""
    before = Celery(set_as_current=False)
    app = Celery("nest", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://", task_always_eager=True)
    world.__dict__.update(inside=None, at_event=None, ran=[], sent=[], cqrs=CQRS(app))
    app.set_current()
    yield world.cqrs
    before.set_current()
    app.close()


def run(cqrs: CQRS, command: Command, how: str) -> Any:
    if how == "execute":
        return cqrs.execute(command).value
    if how == "execute_async":
        return asyncio.run(cqrs.execute_async(command)).value
    return cqrs.send_command(command).get()["value"]


everyhow = pytest.mark.parametrize("how", ["execute", "execute_async", "delay"])
visits = pytest.mark.parametrize("cls", [Visit, VisitSoon])

NESTED = {
    "execute": lambda: world.cqrs.execute(Lay()),
    "apply": lambda: lay.apply((Lay(),)),
    "its task": lambda: lay.task(Lay()),
    "its task's run": lambda: lay.task.run(Lay()),
    "chain": lambda: chain(lay.si(Lay()), lay.si(Lay())).apply_async(),
    "another aggregate": lambda: world.cqrs.execute(Lay(id="another")),
}


def laid(cqrs: CQRS) -> list[str]:
    return [stored.event.data.decode() for stored in cqrs.store.read_all()]


# ------------------------------------------------------------ refused


@everyhow
@visits
@pytest.mark.parametrize("nested", NESTED)
def test_a_command_executed_inside_a_handler_is_refused_and_nothing_is_committed(
    cqrs: CQRS, how: str, cls: Any, nested: str
) -> None:
    world.inside = NESTED[nested]
    with pytest.raises(
        NestedExecution, match=r"command Lay inside the handler .*\.delay\(\)"
    ) as it:
        run(cqrs, cls(), how)
    assert it.value.command == "Lay"
    assert it.value.handler.rpartition(".")[2] in ("visit", "visit_soon")
    assert vars(pickle.loads(pickle.dumps(it.value))) == vars(it.value)
    assert len(world.ran) == 1
    assert laid(cqrs) == []


@everyhow
def test_execute_async_inside_an_async_handler_is_refused_too(cqrs: CQRS, how: str) -> None:
    world.inside = lambda: cqrs.execute_async(Lay())
    with pytest.raises(NestedExecution, match="execute_async was called for the command Lay"):
        run(cqrs, VisitSoon(), how)
    assert laid(cqrs) == []


def test_a_subscriptions_function_executes_none_either(cqrs: CQRS) -> None:
    world.inside = list
    world.at_event = NESTED["execute"]
    with pytest.raises(SubscriptionFailed, match="NestedExecution: execute was called") as it:
        cqrs.execute(Visit())
    assert isinstance(it.value.__cause__, NestedExecution)
    assert world.ran == ["visit", "look at visit"]


def test_outside_of_handlers_everything_may_be_executed(cqrs: CQRS) -> None:
    world.inside = list
    assert [cqrs.execute(Visit()).value, lay.apply((Lay(),)).get()["value"]] == [1, 2]
    assert chain(lay.si(Lay()), lay.si(Lay())).apply_async().get()["value"] == 4


def test_what_a_handler_has_started_may_execute_when_the_handler_has_returned(
    cqrs: CQRS,
) -> None:
    # given an async handler that starts something, and does not wait for it
    async def go_on(gate: asyncio.Event) -> Any:
        await gate.wait()
        return (await cqrs.execute_async(Lay())).value

    async def run() -> Any:
        gate, started = asyncio.Event(), []
        world.inside = lambda: started.append(asyncio.create_task(go_on(gate)))
        await cqrs.execute_async(VisitSoon())
        # when the handler has returned, and that goes on
        gate.set()
        return await started[0]

    # then it executes a command
    assert asyncio.run(run()) == 2


# ------------------------------------------------------------ sent, in eager mode


@everyhow
@visits
def test_what_a_handler_sends_eagerly_to_its_own_aggregate_runs_once_when_it_is_through(
    cqrs: CQRS, how: str, cls: Any
) -> None:
    # given a handler that sends a command to the aggregate that it changes itself
    world.inside = lambda: world.sent.append((Lay().delay(), list(world.ran)))
    # when it runs
    assert run(cqrs, cls(), how) == 1
    # then the other one ran after it and all that it brought about, on what it had committed
    first = world.ran[0]
    assert world.ran == [first, "look at visit", "lay", "look at lay"]
    ((result, ran_before),) = world.sent
    assert ran_before == [first]
    assert (result.state, result.get()["value"]) == ("SUCCESS", 2)
    assert len(laid(cqrs)) == 2


def test_until_then_its_result_is_pending_and_waiting_for_it_is_refused(cqrs: CQRS) -> None:
    def send_and_wait() -> None:
        result = Lay().delay()
        world.sent.append((result.state, result.ready(), result.successful()))
        result.get(timeout=1)

    world.inside = send_and_wait
    with pytest.raises(NestedExecution, match=r"the result's get\(\)"):
        cqrs.execute(Visit())
    assert world.sent == [("PENDING", False, False)]
    # and, as with a worker, it was sent all the same
    assert world.ran == ["visit", "lay", "look at lay"]


@everyhow
def test_what_fails_later_is_its_own_results_failure(cqrs: CQRS, how: str) -> None:
    world.inside = lambda: world.sent.append(Refuse().delay())
    assert run(cqrs, Visit(), how) == 1
    with pytest.raises(ValueError, match="no visitors"):
        world.sent[0].get()


@everyhow
def test_with_eager_propagation_it_is_raised_when_all_have_run(cqrs: CQRS, how: str) -> None:
    cqrs.app.conf.task_eager_propagates = True

    def send() -> None:
        Refuse().delay()
        Lay().delay()

    world.inside = send
    with pytest.raises(ValueError, match="no visitors"):
        run(cqrs, Visit(), how)
    assert world.ran == ["visit", "look at visit", "refuse", "lay", "look at lay"]
    assert len(laid(cqrs)) == 2


def test_what_subscriptions_send_and_what_is_published_runs_in_the_order_of_sending(
    cqrs: CQRS,
) -> None:
    world.inside = lambda: cqrs.publish(Chirped())
    world.at_event = lambda: Lay().delay()
    cqrs.execute(Visit())
    assert world.ran == ["visit", "look at visit", "listen", "lay", "look at lay"]
