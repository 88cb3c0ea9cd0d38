"""What is said of a request, which everything carries that the request sends and records."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from celery import Celery, chain

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Message,
    Metadata,
    RecordedEvent,
    Session,
    command_handler,
    subscribes,
)
from cqrs_celery.dispatch.attempts import Attempt
from cqrs_celery.dispatch.context import MOST_ENTRIES, current_metadata
from cqrs_celery.dispatch.envelope import with_context_of
from cqrs_celery.errors import InvalidText
from cqrs_celery.store.stream import StreamName


class Opened(Event, name="gatehouse.opened"):
    pass


class Told(Message, name="gatehouse.told"):
    pass


class Gatehouse(Aggregate, name="Gatehouse"):
    pass


class Open(Command, name="gatehouse.open", aggregate=Gatehouse, key="id"):
    id: str


class OpenNext(Command, name="gatehouse.open_next", aggregate=Gatehouse, key="id"):
    id: str


seen: list[tuple[str, Metadata]] = []


@command_handler(Open)
def open_gate(command: Open, session: Session, metadata: Metadata) -> None:
    seen.append(("open", metadata))
    session.get_or_create(Gatehouse, command.id).record(Opened())


@command_handler(OpenNext)
async def open_next(command: OpenNext, session: Session, metadata: Metadata) -> None:
    seen.append(("open_next", metadata))


@subscribes(Opened, subscription="gatehouse.follow")
def follow(event: Opened, recorded: RecordedEvent[Opened], metadata: Metadata) -> None:
    seen.append(("recorded", recorded.metadata))
    with cqrs_of_test[0].context(role="porter"):
        OpenNext(id=recorded.aggregate_id).delay()


@subscribes(Told, subscription="gatehouse.listen")
def listen(message: Told, metadata: Metadata) -> None:
    seen.append(("told", metadata))


cqrs_of_test: list[CQRS] = []


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application whose tasks run in this process."""
    seen.clear()
    app = Celery("gatehouse", broker="memory://", set_as_current=False)
    app.conf.update({"task_always_eager": True, "cqrs_event_store": "memory://"})
    cqrs_of_test[:] = [CQRS(app)]
    app.set_current()
    yield cqrs_of_test[0]
    cqrs_of_test.clear()


USER = {"user_id": "u7"}


@pytest.mark.parametrize("how", ["delay", "execute", "execute_async", "chain"])
def test_what_a_command_records_and_causes_carries_what_was_said(cqrs: CQRS, how: str) -> None:
    # given a request of a user
    with cqrs.context(correlation_id="request-1", user_id="u7"):
        # when it carries out a command, whose event's subscription sends another one
        if how == "delay":
            Open(id="1").delay().get()
        elif how == "execute":
            cqrs.execute(Open(id="1"))
        elif how == "chain":
            chain(cqrs.app.tasks["gatehouse.open"].si(Open(id="1"))).apply_async().get()
        else:
            asyncio.run(cqrs.execute_async(Open(id="1")))
    # then handler, event and subscription have the user and the request
    traces = dict(seen)
    assert [name for name, _ in seen] == ["open", "recorded", "open_next"]
    (stored,) = cqrs.store.read_stream(StreamName("gatehouse", "Gatehouse", "1"))
    assert traces["open"].context == traces["recorded"].context == USER
    assert stored.event.metadata.context == USER
    # and the second command what the subscription has added
    assert traces["open_next"].context == {"user_id": "u7", "role": "porter"}
    assert {metadata.correlation_id for metadata in traces.values()} == {"request-1"}
    # but what is caused by what is still told
    assert traces["recorded"].causation_id not in ("", "request-1")
    assert traces["open_next"].causation_parent_id == stored.event.event_id


def test_messages_and_sessions_carry_what_was_said(cqrs: CQRS) -> None:
    with cqrs.context(user_id="u7") as metadata:
        cqrs.publish(Told())
        with cqrs.session() as session:
            session.get_or_create(Gatehouse, "2").record(Opened())
    (stored,) = cqrs.store.read_stream(StreamName("gatehouse", "Gatehouse", "2"))
    told = dict(seen)["told"]
    assert stored.event.metadata.context == told.context == USER
    # and one trace, which begins here
    assert metadata.correlation_id != ""
    assert stored.event.metadata.correlation_id == told.correlation_id == metadata.correlation_id


def test_blocks_add_replace_and_leave_out_and_end(cqrs: CQRS) -> None:
    with cqrs.context(user_id="u7", tenant_id="t1") as outer:
        with cqrs.context(user_id="u8", role="porter") as inner:
            assert inner.context == {"user_id": "u8", "tenant_id": "t1", "role": "porter"}
            assert inner.correlation_id == outer.correlation_id
        with cqrs.context(tenant_id=None, unknown=None, correlation_id="c") as third:
            assert third.context == USER
            assert third.correlation_id == "c"
        assert current_metadata() == outer
    assert current_metadata() == Metadata()
    with pytest.raises(LookupError), cqrs.context(user_id="u7"):
        raise LookupError
    assert current_metadata() == Metadata()


def test_tasks_and_threads_have_what_was_said_where_they_began(cqrs: CQRS) -> None:
    async def request(user_id: str) -> Mapping[str, str]:
        with cqrs.context(user_id=user_id):
            await asyncio.sleep(0)
            return (await asyncio.to_thread(current_metadata)).context

    async def requests() -> list[Mapping[str, str]]:
        return list(await asyncio.gather(*(request(f"u{n}") for n in range(20))))

    assert asyncio.run(requests()) == [{"user_id": f"u{n}"} for n in range(20)]
    with cqrs.context(user_id="u7"), ThreadPoolExecutor(1) as pool:
        assert pool.submit(current_metadata).result() == Metadata()


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"user_id": ""}, r"user_id of a context is a text of 1 to 200 characters; found 0"),
        ({"user_id": "u" * 201}, r"user_id of a context .* found 201 of them"),
        ({"user_id": 7}, r"user_id of a context .* found 7$"),
        ({"correlation_id": ""}, r"a correlation_id is a text of 1 to 200 characters; found 0"),
        ({"n" * 65: "u7"}, r"names are of at most 64 characters; found 65: n+…"),
        (
            {f"name_{n}": "u7" for n in range(MOST_ENTRIES + 1)},
            r"at most 16 entries, .* found 17: name_0, .*: leave out what can be looked up",
        ),
    ],
)
def test_what_may_not_be_said_is_refused(cqrs: CQRS, entries: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said), cqrs.context(**entries):
        pytest.fail("the block was entered")
    assert current_metadata() == Metadata()


@pytest.mark.parametrize("entries", [{"user_id": "a\0"}, {"a\ud800": "u7"}])
def test_what_not_every_store_can_hold_is_refused(cqrs: CQRS, entries: Any) -> None:
    with pytest.raises(InvalidText), cqrs.context(**entries):
        pytest.fail("the block was entered")


def test_a_chains_next_command_inherits_what_was_said_and_no_more() -> None:
    before = {
        "type": "a",
        "metadata": {"correlation_id": "c", "causation_id": "x", "context": USER},
    }
    inherited = {"correlation_id": "c", "context": USER}
    assert with_context_of({"type": "b"}, before) == {"type": "b", "metadata": inherited}
    # but not over a trace of its own, nor from what has said nothing, or is no command
    own = {"type": "b", "metadata": {"correlation_id": "d"}}
    assert with_context_of(own, before) == own
    for other in (None, 7, [before], {}, {"metadata": {"correlation_id": "c"}}, {"metadata": 7}):
        assert with_context_of({"type": "b"}, other) == {"type": "b"}


def test_nobody_can_change_what_other_messages_carry(cqrs: CQRS) -> None:
    with cqrs.context(user_id="u7") as metadata:
        caused = Metadata.caused_by("m-1", metadata)
    for context in (metadata.context, caused.context, Metadata().context):
        changed: Any = context
        for change in (
            lambda changed: changed.update(user_id="u8"),
            lambda changed: changed.__setitem__("role", "porter"),
            lambda changed: changed.pop("user_id", None),
            lambda changed: changed.clear(),
        ):
            with pytest.raises(TypeError, match=r"can't be changed: other .* with cqrs.context"):
                change(changed)
    assert metadata.context == caused.context == USER
    # but it may be copied, and that changed
    for copied in (copy.deepcopy(metadata), pickle.loads(pickle.dumps(metadata))):
        assert copied == metadata
    assert {**metadata.context, "role": "porter"} == {"user_id": "u7", "role": "porter"}


def test_a_batch_has_the_context_of_its_first_event_and_each_event_its_own() -> None:
    events = [
        RecordedEvent(
            Opened(), f"e{n}", "gatehouse", "Gatehouse", "1", n, n, datetime.now(UTC), trace
        )
        for n, trace in enumerate([Metadata(context=USER), Metadata(context={"user_id": "u8"})], 1)
    ]
    attempt = Attempt.for_batch(events)
    assert attempt.metadata.context == USER
    assert [one.metadata.context["user_id"] for one in attempt.message] == ["u7", "u8"]


def test_what_a_later_release_adds_to_metadata_is_ignored() -> None:
    later = {"correlation_id": "c", "context": USER, "later": {"a": [1]}}
    assert msgspec.convert(later, Metadata) == Metadata(correlation_id="c", context=USER)
