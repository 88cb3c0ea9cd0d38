"""Messages that are not stored, without a server: tasks of this process, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Message,
    Metadata,
    Query,
    RecordedEvent,
    Session,
    command_handler,
    query_handler,
    subscribes,
)
from cqrs_celery.dispatch.context import handling
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.publishing import Publisher
from cqrs_celery.errors import (
    HandlerSignatureError,
    InvalidSetting,
    MalformedMessage,
    PublishFailed,
    RegistrationError,
)
from cqrs_celery.store.stream import StreamName
from tests.nodes import free_port


class PricesPrinted(Message, name="press.prices_printed"):
    copies: int


class PricesPrintedInColour(PricesPrinted, name="press.prices_printed_in_colour"):
    pass


class PageTurned(Message, name="press.page_turned", key="book"):
    book: str
    page: int


class Archived(Event, name="press.archived"):
    copies: int


class Shelf(Aggregate, name="PressShelf"):
    pass


class Whisper(Command, name="press.whisper"):
    text: str


class Ask(Query, name="press.ask"):
    pass


got: list[Any] = []


@subscribes(PricesPrinted, subscription="press.readers")
def read(message: PricesPrinted, metadata: Metadata) -> None:
    if message.copies < 0:
        raise ValueError("no such edition")
    got.append(("read", message, metadata))


@subscribes(PricesPrinted)
def archive(message: PricesPrinted, session: Session) -> None:
    if message.copies >= 1_000:
        shelf = Shelf(str(message.copies))
        shelf.record(Archived(copies=message.copies))
        session.add(shelf)
    got.append(("archive", message))


@command_handler(Whisper)
def whisper(command: Whisper) -> str:
    return command.text.lower()


@query_handler(Ask)
def answer(query: Ask) -> int:
    return 42


def application(**settings: Any) -> CQRS:
    app = Celery("press", broker="memory://", set_as_current=False)
    app.conf.update({"task_always_eager": True, "cqrs_event_store": "memory://", **settings})
    return CQRS(app)


def application_without_store() -> CQRS:
    app = Celery("press", broker="memory://", set_as_current=False)
    app.conf.task_always_eager = True
    return CQRS(app)


@pytest.fixture
def cqrs() -> CQRS:
    """Give an application whose tasks run in this process."""
    got.clear()
    return application()


def test_a_message_reaches_every_subscriber(cqrs: CQRS) -> None:
    """ACCEPTANCE 78."""
    published = cqrs.publish(PricesPrinted(copies=5))
    assert published.queues == 2
    trace = Metadata(correlation_id=published.message_id, causation_id=published.message_id)
    assert got == [
        ("read", PricesPrinted(copies=5), trace), ("archive", PricesPrinted(copies=5)),
    ]  # fmt: skip


def test_a_failing_subscriber_keeps_nothing_from_the_others(cqrs: CQRS) -> None:
    cqrs.publish(PricesPrinted(copies=-1))
    assert [name for name, *_ in got] == ["archive"]


def test_a_subscriber_of_a_base_class_gets_those_below_it_and_no_events(cqrs: CQRS) -> None:
    cqrs.publish(PricesPrintedInColour(copies=5))
    assert {type(message) for _, message, *_ in got} == {PricesPrintedInColour}

    def everything(message: Message) -> None: ...

    definition = subscribes(Message, subscription="press.everything")(everything).definition
    topics = definitions.topics_of(definition)
    definitions._by_key = {k: d for k, d in definitions._by_key.items() if d is not definition}
    assert {PricesPrinted, PricesPrintedInColour, PageTurned} <= set(topics)
    assert {cls.__kind__ for cls in topics} == {"message"}


def test_what_nobody_subscribes_to_goes_nowhere(cqrs: CQRS) -> None:
    assert cqrs.publish(PageTurned(book="b", page=1)).queues == 0


def test_what_a_subscribers_session_holds_is_committed_once(cqrs: CQRS) -> None:
    # when a message is published, and comes again
    for _ in range(2):
        cqrs.publish(PricesPrinted(copies=1_000), message_id="edition-7")
    # then its subscriber has run twice, and committed once, in the message's trace
    assert [name for name, *_ in got] == ["read", "archive"] * 2
    (stored,) = cqrs.store.read_stream(StreamName("press", "PressShelf", "1000"))
    assert stored.event.metadata == Metadata(correlation_id="edition-7", causation_id="edition-7")


def test_a_messages_own_cause_is_not_lost(cqrs: CQRS) -> None:
    # given something that is being handled, in a trace
    with handling(Metadata(correlation_id="order-1", causation_id="event-1"), "printer"):
        # when it publishes a message, whose subscriber commits
        cqrs.publish(PricesPrinted(copies=1_000), message_id="edition-8")
    # then what was committed leads to the message, and over it to what published that
    (stored,) = cqrs.store.read_stream(StreamName("press", "PressShelf", "1000"))
    assert stored.event.metadata == Metadata(
        correlation_id="order-1", causation_id="edition-8", causation_parent_id="event-1"
    )


def test_messaging_works_without_an_event_store_and_the_bus_without_a_broker() -> None:
    # given an application that names no store, on a broker that is not ours
    got.clear()
    cqrs = application_without_store()
    # then messages are published, commands carried out, under a key too, and queries answered
    assert cqrs.publish(PricesPrinted(copies=5)).queues == 2
    assert cqrs.execute(Whisper(text="HI")).value == "hi"
    assert cqrs.send_command(Whisper(text="HI"), idempotency_key="k").get()["value"] == "hi"
    assert cqrs.query(Ask()) == 42
    # and what needs a store says what is missing
    with (
        pytest.raises(InvalidSetting, match="the broker must be the reliable queue"),
        cqrs.session() as session,
    ):
        session.find(Shelf, "1")
    with pytest.raises(InvalidSetting, match="the broker must be the reliable queue"):
        cqrs.store.read_all()
    # as a worker does when it starts, if a handler takes a session, or an event
    with pytest.raises(InvalidSetting, match="the broker must be the reliable queue"):
        cqrs.check_handlers()


def test_with_another_broker_each_subscriber_is_sent_a_task_and_a_capacity_is_refused() -> None:
    # given a broker that is not ours
    cqrs = application(task_always_eager=False)
    with cqrs.app.connection_for_write() as connection:
        for name in ("press.readers", "press.archive"):
            connection.SimpleQueue(name).clear()
        # when a message is published
        published = cqrs.publish(PricesPrinted(copies=5))
        # then there is a task in each subscriber's queue
        assert published.queues == 2
        for name, task in (("press.readers", "press.readers.read"), ("press.archive",) * 2):
            headers = connection.SimpleQueue(name).get(timeout=5).headers
            assert (headers["task"], headers["id"]) == (task, f"{published.message_id}:{task}")
    # and nobody can say how many wait there
    with pytest.raises(InvalidSetting, match="capacity = 5, but the broker can't say") as caught:
        cqrs.publish(PricesPrinted(copies=5), capacity=5)
    assert caught.value.setting == "broker_transport"


@pytest.mark.parametrize("message", [Archived(copies=1), Whisper(text=""), Ask(), "a text"])
def test_only_a_message_is_published(cqrs: CQRS, message: Any) -> None:
    with pytest.raises(TypeError, match="publish takes a Message"):
        cqrs.publish(message)


@pytest.mark.parametrize(
    "options",
    [
        {"capacity": 0}, {"capacity": -1}, {"capacity": 1.5}, {"capacity": True},
        {"timeout_s": -1}, {"timeout_s": float("inf")}, {"message_id": ""}, {"message_id": 5},
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_refused(cqrs: CQRS, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options)).replace("_", ".")):
        cqrs.publish(PricesPrinted(copies=5), **options)
    assert got == []


def test_a_message_that_json_has_no_form_for_is_refused(cqrs: CQRS) -> None:
    with pytest.raises(MalformedMessage, match=r"press\.prices_printed"):
        cqrs.publish(PricesPrinted(copies="many"))  # type: ignore[arg-type]


def test_a_message_has_no_facts_of_recording() -> None:
    with pytest.raises(HandlerSignatureError, match=r"of a message is given: Session, Metadata"):

        @subscribes(PricesPrinted, Archived, subscription="press.wrong")
        def wrong(message: Any, recorded: RecordedEvent[Any]) -> None: ...


def test_a_message_may_have_a_key_and_no_aggregate() -> None:
    with pytest.raises(RegistrationError, match="both; a published message may have a key"):

        class Misprinted(Message, name="press.misprinted", aggregate=Shelf, key="id"):
            id: str

    with pytest.raises(RegistrationError, match="has the key 'page', but its fields are book"):

        class Torn(Message, name="press.torn", key="page"):
            book: str


def test_a_message_with_a_key_is_in_order_with_those_of_its_class_and_key(cqrs: CQRS) -> None:
    # given a broker that notes what it is given
    noted: list[tuple[str, str]] = []

    class Noting:
        def publish(self, topic: str, body: str, *, sequence: str, **_: Any) -> int:
            noted.append((topic, sequence))
            return 1

    runtime = application(task_always_eager=False).runtime
    publisher = Publisher(runtime, Noting(), body=("", ""))
    # when messages with and without a key are published
    for message in (PageTurned(book="a:b", page=1), PricesPrinted(copies=1)):
        publisher.publish(message, capacity=None, timeout_s=0, message_id=None)
    # then the key is a sequence
    assert noted == [
        ("message:press.page_turned", "press.page_turned:a:b"),
        ("message:press.prices_printed", ""),
    ]


def test_a_result_backend_that_is_away_is_named_with_its_drivers_reason() -> None:
    # given a result backend that nobody runs, and which is tried twice
    app = Celery("press", broker="memory://", backend=f"redis://127.0.0.1:{free_port()}/0")
    policy = {"max_retries": 2, "interval_step": 0.01, "interval_max": 0.01}
    app.conf.update(
        cqrs_event_store="memory://", result_backend_transport_options={"retry_policy": policy}
    )
    cqrs = CQRS(app)
    # when a command is sent
    with pytest.raises(PublishFailed) as caught:
        cqrs.send_command(Whisper(text="hush"))
    # then the error tells which server does not answer, and asks for no restart of the application
    assert "the result backend does not answer (Error " in str(caught.value)
    assert "restart" not in str(caught.value)
    app.close()
