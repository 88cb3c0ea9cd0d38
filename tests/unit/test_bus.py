"""The bus: commands and queries reach their one handler, through middleware, without a broker."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Annotated, Any

import msgspec
import pytest
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    CommandResult,
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
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.dispatch.bus import Attempt, Bus
from cqrs_celery.dispatch.middleware import Call, log_calls, time_calls, validate_fields
from cqrs_celery.errors import (
    ConcurrencyError,
    DuplicateRegistration,
    HandlerNotFound,
    MalformedMessage,
    RegistrationError,
)
from cqrs_celery.messages.metadata import NO_METADATA
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.repository import Repository

Amount = Annotated[int, msgspec.Meta(ge=1)]


class Counted(Event, name="bus.counted"):
    amount: int


class Counter(Aggregate, name="BusCounter"):
    total: int = 0

    @applies(Counted)
    def _counted(self, event: Counted) -> None:
        self.total += event.amount


class Count(Command, name="bus.count", aggregate=Counter, key="id"):
    id: str
    amount: Amount = 1


class CountSoon(Count, name="bus.count_soon", aggregate=Counter, key="id"):
    pass


class Nothing(Command, name="bus.nothing"):
    pass


class Total(Query, name="bus.total"):
    of: int = 5


class TotalSoon(Query, name="bus.total_soon"):
    of: int = 5


class UnhandledCommand(Command, name="bus.unhandled"):
    pass


class UnhandledQuery(Query, name="bus.unhandled_query"):
    pass


class Announced(Message, name="bus.announced"):
    pass


#: What happened, in its order; what handlers fail with.
log: list[Any] = []
failing: list[Exception] = []
where_it_is: ContextVar[str] = ContextVar("where_it_is", default="nowhere")


def count_one(command: Count, session: Session) -> int:
    log.append(f"handler {where_it_is.get()}")
    if failing:
        raise failing.pop()
    counter = session.find(Counter, command.id)
    if counter is None:
        counter = Counter(command.id)
        session.add(counter)
    counter.record(Counted(amount=command.amount))
    return counter.total


@command_handler(Count)
def count(command: Count, session: Session) -> int:
    return count_one(command, session)


@command_handler(CountSoon)
async def count_soon(command: CountSoon, session: Session) -> int:
    await asyncio.sleep(0)
    return count_one(command, session)


@command_handler(Nothing)
def nothing(command: Nothing) -> None:
    log.append("nothing")


@query_handler(Total)
def total(query: Total) -> int:
    log.append(f"handler {where_it_is.get()}")
    return query.of * 2


@query_handler(TotalSoon)
async def total_soon(query: TotalSoon) -> int:
    await asyncio.sleep(0)
    return query.of * 3


@subscribes(Counted, subscription="bus.list")
def on_counted(event: Counted, recorded: RecordedEvent[Counted]) -> None:
    log.append("subscriber")


@subscribes(Announced, subscription="bus.list")
def on_announced(message: Announced) -> None:
    log.append("announced")


@pytest.fixture(autouse=True)
def empty_log() -> None:
    log.clear()
    failing.clear()


def cqrs_with(*middleware: Any, store: MemoryEventStore | None = None) -> CQRS:
    """Make an application whose broker nobody could reach; with a store, nothing is delivered."""
    app = Celery("bus", broker="amqp://nobody.invalid", changes={"cqrs_event_store": "memory://"})
    return CQRS(app, store=store, middleware=middleware)


def recording(name: str) -> Any:
    @contextmanager
    def middleware(call: Call) -> Iterator[None]:
        log.append(f"{name} in")
        try:
            yield
        finally:
            log.append(f"{name} out")

    return middleware


def ask(cqrs: CQRS, message: Any, how: str) -> Any:
    """Ask in one of the two ways."""
    verb = "query" if message.__kind__ == "query" else "execute"
    if how == "sync":
        return getattr(cqrs, verb)(message)
    return asyncio.run(getattr(cqrs, f"{verb}_async")(message))


both_ways = pytest.mark.parametrize("how", ["sync", "async"])


# ------------------------------------------------------------ handlers


@both_ways
def test_a_query_reaches_its_one_handler_and_its_result_comes_back(how):
    """ACCEPTANCE 1."""
    assert ask(cqrs_with(), Total(of=4), how) == 8


@both_ways
def test_a_command_reaches_its_one_handler_with_or_without_a_result(how):
    """ACCEPTANCE 2."""
    cqrs = cqrs_with()
    assert ask(cqrs, Count(id="7", amount=3), how).value == 3
    assert ask(cqrs, Nothing(), how).value is None
    assert "nothing" in log


@both_ways
def test_an_async_query_handler_is_awaited(how):
    """ACCEPTANCE 3."""
    assert ask(cqrs_with(), TotalSoon(of=4), how) == 12


@both_ways
def test_an_async_command_handler_is_awaited(how):
    """ACCEPTANCE 4."""
    assert ask(cqrs_with(), CountSoon(id="7", amount=3), how).value == 3


@both_ways
def test_a_missing_query_handler_is_an_error_that_names_it_and_what_was_looked_for(how):
    """ACCEPTANCE 5 and 7."""
    text = "no sync or async handler for the query UnhandledQuery"
    with pytest.raises(HandlerNotFound, match=text) as refused:
        ask(cqrs_with(), UnhandledQuery(), how)
    assert refused.value.message_type == "UnhandledQuery"
    assert refused.value.looked_for == "sync or async"


@both_ways
def test_a_missing_command_handler_is_an_error_that_names_it_and_what_was_looked_for(how):
    """ACCEPTANCE 6 and 8."""
    text = "no sync or async handler for the command UnhandledCommand"
    with pytest.raises(HandlerNotFound, match=text) as refused:
        ask(cqrs_with(), UnhandledCommand(), how)
    assert refused.value.message_type == "UnhandledCommand"


def test_a_second_handler_is_refused_and_both_are_named():
    """ACCEPTANCE 8: a second handler for a command is refused at registration, naming both."""
    for decorate, name in ((command_handler(Count), "count"), (query_handler(Total), "total")):
        with pytest.raises(DuplicateRegistration, match=rf"(?s){name}.*second"):

            @decorate
            def second(message: Any) -> None:
                """Be one too many."""


# ------------------------------------------------------------ middleware


@both_ways
@pytest.mark.parametrize("message", [Total(), TotalSoon(), Count(id="7"), CountSoon(id="7")])
def test_middleware_is_entered_in_its_order_and_left_in_reverse(message, how):
    cqrs = cqrs_with(
        recording("first"),
        recording("second"),
        store=MemoryEventStore(on_commit=lambda events: None),
    )
    ask(cqrs, message, how)
    told = [one for one in log if one.startswith(("first", "second"))]
    assert told == ["first in", "second in", "second out", "first out"]


@both_ways
@pytest.mark.parametrize("message", [Total(), Count(id="7"), CountSoon(id="7")])
def test_what_middleware_sets_in_the_context_the_handler_sees(message, how):
    @contextmanager
    def somewhere(call: Call) -> Iterator[None]:
        token = where_it_is.set("somewhere")
        try:
            yield
        finally:
            where_it_is.reset(token)

    ask(cqrs_with(somewhere), message, how)
    assert "handler somewhere" in log
    assert where_it_is.get() == "nowhere"


@both_ways
def test_middleware_sees_the_call_and_what_came_of_it(how):
    calls: list[Call] = []
    results: list[Any] = []

    @contextmanager
    def watching(call: Call) -> Iterator[None]:
        calls.append(call)
        results.append(call.result)
        yield
        results.append(call.result)

    cqrs = cqrs_with(watching)
    ask(cqrs, Count(id="7", amount=2), how)
    ask(cqrs, Total(of=1), how)
    kinds = [(call.kind, call.name, call.handler.rpartition(".")[2]) for call in calls]
    assert kinds == [
        ("command", "bus.count", "count"), ("event", "bus.counted", "on_counted"),
        ("query", "bus.total", "total"),
    ]  # fmt: skip
    assert calls[0].metadata.correlation_id == calls[1].metadata.correlation_id != ""
    assert calls[1].recorded is not None
    assert calls[1].recorded.version == 1
    assert calls[0].result == CommandResult(value=2, position=1)
    assert results[-2:] == [None, 2]


@both_ways
def test_what_a_middleware_refuses_does_not_reach_the_handler(how):
    @contextmanager
    def refusing(call: Call) -> Iterator[None]:
        if call.kind:
            raise PermissionError("not today")
        yield

    cqrs = cqrs_with(recording("outer"), refusing, recording("inner"))
    for message in (Total(), Count(id="7"), CountSoon(id="7")):
        log.clear()
        with pytest.raises(PermissionError, match="not today"):
            ask(cqrs, message, how)
        assert log == ["outer in", "outer out"]
    assert cqrs.store.read_all() == []


@both_ways
def test_a_failure_is_seen_may_be_translated_and_is_never_forgotten(how):
    class Translated(Exception):
        pass

    @contextmanager
    def forgetting(call: Call) -> Iterator[None]:
        with suppress(ValueError):
            yield

    @contextmanager
    def translating(call: Call) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise Translated from error

    for message in (Count(id="7"), CountSoon(id="7")):
        failing.append(ValueError("x"))
        with pytest.raises(ValueError, match="x"):
            ask(cqrs_with(forgetting), message, how)
        failing.append(ValueError("x"))
        with pytest.raises(Translated):
            ask(cqrs_with(translating), message, how)


def test_a_failure_that_is_forgotten_while_entering_is_raised_too():
    @contextmanager
    def forgetting(call: Call) -> Iterator[None]:
        with suppress(ValueError):
            yield

    @contextmanager
    def refusing(call: Call) -> Iterator[None]:
        if call.kind:
            raise ValueError("no")
        yield

    with pytest.raises(ValueError, match="no"):
        cqrs_with(forgetting, refusing).query(Total())


@both_ways
def test_middleware_is_around_all_repetitions_and_the_commit(how):
    for message in (Count(id="7"), CountSoon(id="7")):
        log.clear()
        conflict = ConcurrencyError("another writer", stream="s", expected=0, found=1)
        failing.append(conflict)
        ask(
            cqrs_with(recording("m"), store=MemoryEventStore(on_commit=lambda events: None)),
            message,
            how,
        )
        assert log == ["m in", "handler nowhere", "handler nowhere", "m out"]


def test_a_tasks_commands_messages_and_batches_have_middleware_too():
    kinds: list[Any] = []

    @contextmanager
    def watching(call: Call) -> Iterator[None]:
        kinds.append((call.kind, call.name))
        yield

    @subscribes(Counted, batch=5)
    def bus_batch(events: list[RecordedEvent[Counted]]) -> None:
        log.append(len(events))

    cqrs = cqrs_with(watching)
    cqrs.app.conf.task_always_eager = True
    Count(id="7").delay().get()
    cqrs.publish(Announced())
    assert sorted(set(kinds)) == [
        ("command", "bus.count"), ("event", "bus.counted"), ("message", "bus.announced")
    ]  # fmt: skip
    assert len(kinds) == 4


@pytest.mark.parametrize("kind", ["text", "async function", "async generator"])
def test_what_is_no_middleware_is_refused(kind):
    async def function(call: Call) -> None:
        """Be async."""

    async def generator(call: Call) -> Any:
        yield

    wrong = {"text": "log", "async function": function, "async generator": generator}[kind]
    with pytest.raises(RegistrationError, match="expected a function that takes a Call"):
        cqrs_with(wrong)


# ------------------------------------------------------------ those that are there


def test_calls_are_logged_with_their_fields_and_no_payload(caplog):
    caplog.set_level(logging.DEBUG, logger="cqrs_celery.dispatch.middleware")
    cqrs = cqrs_with(log_calls)
    cqrs.query(Total())
    failing.append(ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        cqrs.execute(Count(id="7"))
    records = [r for r in caplog.records if r.name.endswith("middleware")]
    told = [(r.levelname, re.sub(r"[\d.]+(?= ms)", "1", r.getMessage())) for r in records]
    assert told == [
        ("DEBUG", "handler tests.unit.test_bus.total of bus.total begins"),
        ("INFO", "handler tests.unit.test_bus.total of bus.total done in 1 ms"),
        ("DEBUG", "handler tests.unit.test_bus.count of bus.count begins"),
        (
            "WARNING",
            "handler tests.unit.test_bus.count of bus.count failed after 1 ms: ValueError: x",
        ),
    ]
    failed: Any = records[-1]
    assert (failed.kind, failed.message_name, failed.error) == (
        "command", "bus.count", "ValueError: x"
    )  # fmt: skip
    assert failed.duration_ms >= 0
    assert failed.correlation_id


def test_calls_are_timed_whether_they_fail_or_not():
    seen: list[Any] = []
    cqrs = cqrs_with(time_calls(lambda call, seconds: seen.append((call.name, seconds >= 0))))
    cqrs.query(Total())
    failing.append(ValueError("x"))
    with pytest.raises(ValueError, match="x"):
        cqrs.execute(Count(id="7"))
    assert seen == [("bus.total", True), ("bus.count", True)]


@both_ways
@pytest.mark.parametrize(
    "message", [Count(id="7", amount="3"), Count(id="7", amount=0), Total(of=None)]  # type: ignore[arg-type]
)  # fmt: skip
def test_fields_that_do_not_fit_are_refused_before_the_handler(message, how):
    with pytest.raises(MalformedMessage, match=r"\$\.(amount|of)"):
        ask(cqrs_with(validate_fields), message, how)
    assert log == []
    assert ask(cqrs_with(validate_fields), Total(of=2), how) == 4


# ------------------------------------------------------------ without Celery


def test_a_bus_needs_no_celery_app():
    serializer = Serializer("bus")
    bus = Bus(Repository(MemoryEventStore(), serializer), serializer, middleware=[recording("m")])
    command = Count(id="7", amount=2)
    result = bus.run(bus.find(command), Attempt(command, NO_METADATA))
    assert (result.value, bus.answer(Total(of=1))) == (2, 2)
    assert asyncio.run(bus.answer_async(TotalSoon(of=1))) == 3
    assert log[0] == "m in"


def test_sync_handlers_leave_the_event_loop_free():
    here: list[Any] = []

    @contextmanager
    def watching(call: Call) -> Iterator[None]:
        here.append(threading.current_thread() is threading.main_thread())
        yield

    cqrs = cqrs_with(watching)
    for message in (Total(), Nothing(), TotalSoon()):
        ask(cqrs, message, "async")
    assert here == [False, False, True]
