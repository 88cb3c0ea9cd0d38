"""Handlers are given what an application provides, one of each a handling, and closed after it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from functools import partial, wraps
from typing import Annotated, Any, Generic, NewType, Self, TypeVar

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
from cqrs_celery.dispatch.context import current_handler, current_metadata
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.errors import (
    ConcurrencyError,
    DuplicateCommand,
    DuplicateRegistration,
    HandlerSignatureError,
    RegistrationError,
    SubscriptionFailed,
)
from cqrs_celery.testing.scenario import Scenario

T = TypeVar("T")

#: What happened, in order.
story: list[str] = []


class Mailer(ABC):
    @abstractmethod
    def mail(self, text: str) -> None: ...


class SmtpMailer(Mailer):
    """Notes what it does, and what ends it."""

    def __init__(self, name: str = "smtp") -> None:
        self.name = name

    def mail(self, text: str) -> None:
        story.append(f"{self.name}: {text}")


class Clock:
    def now(self) -> str:
        return "noon"


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


ReadUrl = NewType("ReadUrl", str)


class Posted(Event, name="mail.posted"):
    text: str


class PostBox(Aggregate, name="MailPostBox"):
    pass


class Rung(Message, name="mail.rung"):
    tone: str


class Post(Command, name="mail.post", aggregate=PostBox, key="id"):
    id: str = "a"
    text: str = "hello"


class PostSoon(Post, name="mail.post_soon", aggregate=PostBox, key="id"):
    pass


class PostAll(Command, name="mail.post_all"):
    pass


class PostOddly(Command, name="mail.post_oddly"):
    pass


class PostNothing(Command, name="mail.post_nothing"):
    pass


class Refused(Command, name="mail.refused"):
    pass


class Ask(Query, name="mail.ask"):
    fails: bool = False


class AskSoon(Query, name="mail.ask_soon"):
    fails: bool = False


#: Called by handlers with their command, to do what a test wants.
do: list[Callable[[Any], None]] = []


def post_it(command: Post, session: Session, mailer: Mailer) -> None:
    mailer.mail(command.text)
    box = session.find(PostBox, command.id) or PostBox(command.id)
    session.add(box)
    if command.text:
        box.record(Posted(text=command.text))
    for one in do:
        one(command)
    story.append("handled")


@command_handler(Post)
def post(command: Post, session: Session, mailer: Mailer) -> None:
    post_it(command, session, mailer)


@command_handler(PostSoon)
async def post_soon(command: PostSoon, session: Session, *, mailer: Mailer) -> None:
    await asyncio.sleep(0)
    await session.find_async(PostBox, command.id)
    post_it(command, session, mailer)


@query_handler(Ask)
def ask(query: Ask, mailer: Mailer) -> str:
    mailer.mail("asked")
    if query.fails:
        raise KeyError("no answer")
    return "answer"


@query_handler(AskSoon)
async def ask_soon(query: AskSoon, mailer: Mailer, session: Session) -> str:
    return ask(Ask(fails=query.fails), mailer)


def application(**settings: Any) -> CQRS:
    app = Celery("mail", set_as_current=False)
    app.conf.update(
        cqrs_event_store="memory://", broker_url="memory://", task_always_eager=True,
        task_eager_propagates=True, **settings,
    )  # fmt: skip
    return CQRS(app)


@pytest.fixture(autouse=True)
def declared() -> Iterator[None]:
    """Declare this module's handlers for one test: other tests' applications provide nothing."""
    definitions._by_key.update(MINE)
    definitions._names = {}
    yield
    for key in MINE:
        definitions._by_key.pop(key, None)
    definitions._names = {}


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    """Give an application in memory, whose tasks run at once."""
    story.clear()
    do.clear()
    made = application()
    yield made
    made.app.close()


def fail(command: Any) -> None:
    raise KeyError("nothing")


def commit_is_there(cqrs: CQRS) -> str:
    return "after the commit" if cqrs.store.read_all() else "without a commit"


def provider(cqrs: CQRS, *, fails: Exception | None = None) -> Callable[[], Iterator[Mailer]]:
    """Return a factory that tells its story, and may fail at its end."""

    def make_mailer() -> Iterator[Mailer]:
        story.append("opened")
        try:
            yield SmtpMailer()
        except BaseException as error:
            story.append(f"told of {type(error).__name__}")
            raise
        finally:
            story.append(f"closed {commit_is_there(cqrs)}")
            if fails is not None:
                raise fails

    return make_mailer


def async_provider(cqrs: CQRS) -> Callable[[], AsyncIterator[Mailer]]:
    async def make_mailer() -> AsyncIterator[Mailer]:
        task = asyncio.current_task()
        with contextmanager(provider(cqrs))() as mailer:
            yield mailer
            await asyncio.sleep(0)
        # as timeouts and task groups need it
        assert asyncio.current_task() is task

    return make_mailer


WAYS: list[Callable[[CQRS, type[Any]], Any]] = [
    lambda cqrs, cls: cqrs.execute(cls()),
    lambda cqrs, cls: asyncio.run(cqrs.execute_async(cls())),
    lambda cqrs, cls: cqrs.send_command(cls()).get(),
]

ways = pytest.mark.parametrize("way", WAYS, ids=["execute", "execute_async", "eager"])
kinds = pytest.mark.parametrize("cls", [Post, PostSoon])

# ------------------------------------------------------------ the scope


@ways
@kinds
def test_a_handler_is_given_a_value_that_is_closed_after_its_commit(
    cqrs: CQRS, way: Any, cls: type[Any]
) -> None:
    # given
    cqrs.provide(Mailer, provider(cqrs))
    # when
    way(cqrs, cls)
    # then
    assert story == ["opened", "smtp: hello", "handled", "closed after the commit"]


@ways
def test_an_async_factory_is_closed_by_the_task_that_has_opened_it_after_the_commit(
    cqrs: CQRS, way: Any
) -> None:
    cqrs.provide(Mailer, async_provider(cqrs))
    way(cqrs, PostSoon)
    assert story == ["opened", "smtp: hello", "handled", "closed after the commit"]


@ways
@kinds
@pytest.mark.parametrize("make", [provider, async_provider])
def test_what_a_handler_raises_is_raised_in_the_factory_after_the_roll_back(
    cqrs: CQRS, way: Any, cls: type[Any], make: Any
) -> None:
    if cls is Post and make is async_provider:
        pytest.skip("a sync handler is given nothing async")
    # given a handler that fails
    cqrs.provide(Mailer, make(cqrs))
    do.append(fail)
    # when
    with pytest.raises(KeyError, match="nothing"):
        way(cqrs, cls)
    # then
    assert story == ["opened", "smtp: hello", "told of KeyError", "closed without a commit"]


@ways
@kinds
def test_a_factory_cannot_make_an_exception_forgotten_or_another_one(
    cqrs: CQRS, way: Any, cls: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    # given two factories: one swallows what is raised, one raises something else
    @contextmanager
    def make_mailer(clock: Clock) -> Iterator[Mailer]:
        with contextlib.suppress(KeyError):
            yield SmtpMailer()

    def make_clock() -> Iterator[Clock]:
        try:
            yield Clock()
        except KeyError as error:
            raise ValueError("the clock stands still") from error

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, make_clock)
    do.append(fail)
    # when, then
    with pytest.raises(KeyError, match="nothing"):
        way(cqrs, cls)
    assert cqrs.store.read_all() == []
    assert "Clock of tests.unit.test_injection.post" in caplog.text
    assert "raised ValueError at closing; another error is raised" in caplog.text


@ways
@kinds
def test_a_repetition_after_a_conflict_has_a_value_of_its_own(
    cqrs: CQRS, way: Any, cls: type[Any]
) -> None:
    # given another writer who commits first, once
    cqrs.provide(Mailer, provider(cqrs))

    def interfere(command: Any) -> None:
        do.clear()
        with cqrs.session() as session:
            box = PostBox(command.id)
            box.record(Posted(text="first"))
            session.add(box)

    do.append(interfere)
    # when
    way(cqrs, cls)
    # then
    once = ["opened", "smtp: hello", "handled"]
    assert story == [
        *once, "told of ConcurrencyError", "closed after the commit",
        *once, "closed after the commit",
    ]  # fmt: skip
    assert issubclass(ConcurrencyError, Exception)


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("cls", [Ask, AskSoon])
def test_a_query_is_given_a_value_too(cqrs: CQRS, cls: Any, *, is_async: bool) -> None:
    def ask_it(query: Any) -> Any:
        return asyncio.run(cqrs.query_async(query)) if is_async else cqrs.query(query)

    cqrs.provide(Mailer, provider(cqrs) if cls is Ask else async_provider(cqrs))
    assert ask_it(cls()) == "answer"
    assert story == ["opened", "smtp: asked", "closed without a commit"]
    with pytest.raises(KeyError, match="no answer"):
        ask_it(cls(fails=True))
    assert story[3:] == ["opened", "smtp: asked", "told of KeyError", "closed without a commit"]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_closing_sends_carries_the_trace_of_the_handling(
    cqrs: CQRS, *, is_async: bool
) -> None:
    seen = []

    def make_mailer(metadata: Metadata) -> Iterator[Mailer]:
        yield SmtpMailer()
        seen.append((metadata, current_metadata(), current_handler()))

    async def make_soon(metadata: Metadata) -> AsyncIterator[Mailer]:
        with contextmanager(make_mailer)(metadata) as mailer:
            yield mailer

    cqrs.provide(Mailer, make_soon if is_async else make_mailer)
    cqrs.execute(PostSoon() if is_async else Post())
    ((given, current, handler),) = seen
    assert given == current
    assert given.correlation_id
    assert handler.endswith("post_soon" if is_async else "post")


# ------------------------------------------------------------ closing fails


@ways
@kinds
def test_a_commit_stands_if_closing_fails_which_is_logged(
    cqrs: CQRS, way: Any, cls: type[Any], caplog: pytest.LogCaptureFixture
) -> None:
    # given
    cqrs.provide(Mailer, provider(cqrs, fails=OSError("the line is dead")))
    # when the session has committed something, then the outcome is the commit
    result = way(cqrs, cls)
    assert result.position == 1
    (line,) = [one for one in caplog.records if "at closing" in one.getMessage()]
    assert line.levelname == "ERROR"
    assert line.exc_info
    assert "the Mailer of tests.unit.test_injection.post" in line.getMessage()
    assert "raised OSError at closing; its commit stands" in line.getMessage()


@ways
@pytest.mark.parametrize("cls", [Post, PostSoon])
def test_a_handling_that_has_committed_nothing_fails_if_closing_fails(
    cqrs: CQRS, way: Any, cls: Any
) -> None:
    # given a handler that records nothing: what it has done may be what closing would have written
    cqrs.provide(Mailer, provider(cqrs, fails=OSError("the line is dead")))
    with pytest.raises(OSError, match="the line is dead"):
        way(cqrs, partial(cls, text=""))
    assert cqrs.store.read_all() == []


def test_a_query_fails_if_closing_fails(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, provider(cqrs, fails=OSError("the line is dead")))
    for query in Ask(), AskSoon():
        with pytest.raises(OSError, match="the line is dead"):
            cqrs.query(query)


def test_all_are_closed_in_the_reverse_order_whatever_one_raises(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    def make_clock() -> Iterator[Clock]:
        try:
            yield Clock()
        finally:
            story.append("clock closed")

    def make_mailer(clock: Clock) -> Iterator[Mailer]:
        yield SmtpMailer()
        story.append("mailer closed")
        raise OSError("the line is dead")

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, make_clock)
    cqrs.execute(Post())
    assert story[-2:] == ["mailer closed", "clock closed"]
    assert len([one for one in caplog.records if "at closing" in one.getMessage()]) == 1


def test_what_was_opened_is_closed_if_another_factory_fails(cqrs: CQRS) -> None:
    def make_mailer(clock: Clock) -> Mailer:
        raise OSError("nobody answers")

    def make_clock() -> Iterator[Clock]:
        try:
            yield Clock()
        except OSError:
            story.append("clock told")
            raise

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, make_clock)
    for cls in Post, PostSoon:
        with pytest.raises(OSError, match="nobody answers"):
            cqrs.execute(cls())
    assert story == ["clock told"] * 2


def test_a_failing_subscription_of_a_commit_in_memory_closes_as_after_a_commit(
    cqrs: CQRS,
) -> None:
    cqrs.provide(Mailer, provider(cqrs))
    with pytest.raises(SubscriptionFailed):
        cqrs.execute(Post(text="unlucky"))
    assert story == ["opened", "smtp: unlucky", "handled", "closed after the commit"]


@subscribes(Posted, subscription="mail.luck")
def try_luck(event: Posted) -> None:
    if event.text == "unlucky":
        raise RuntimeError("unlucky")


# ------------------------------------------------------------ subscriptions


class Drawn(Event, name="mail.drawn"):
    pass


@subscribes(Drawn, subscription="mail.draw")
def note_drawn(event: Drawn, recorded: RecordedEvent[Drawn], mailer: Mailer) -> None:
    mailer.mail(f"drawn in {recorded.aggregate_id}")


@subscribes(Drawn, subscription="mail.draw_soon")
async def note_drawn_soon(event: Drawn, clock: Clock) -> None:
    story.append(clock.now())


@subscribes(Drawn, subscription="mail.many", batch=10)
def note_many(events: list[RecordedEvent[Drawn]], mailer: Mailer) -> None:
    mailer.mail(f"{len(events)} drawn")


@subscribes(Drawn, subscription="mail.many_soon", batch=10)
async def note_many_soon(events: list[RecordedEvent[Drawn]], clock: Clock) -> None:
    story.append(f"{len(events)} at {clock.now()}")


@subscribes(Rung, subscription="mail.rings")
def note_rung(message: Rung, mailer: Mailer) -> None:
    mailer.mail(message.tone)


def test_subscriptions_to_events_batches_and_messages_are_given_values(cqrs: CQRS) -> None:
    # given
    async def make_clock() -> AsyncIterator[Clock]:
        yield Clock()
        story.append("clock closed")

    cqrs.provide(Mailer, provider(cqrs))
    cqrs.provide(Clock, make_clock)
    # when
    with cqrs.session() as session:
        box = PostBox("b")
        box.record(Drawn())
        session.add(box)
    # then
    assert [one for one in story if not one.startswith(("opened", "closed"))] == [
        "smtp: drawn in b", "noon", "clock closed", "smtp: 1 drawn", "1 at noon", "clock closed",
    ]  # fmt: skip
    # and when a message is published
    cqrs.publish(Rung(tone="high"))
    assert story[-2:] == ["smtp: high", "closed after the commit"]


class Copied(Event, name="mail.copied"):
    pass


@subscribes(Copied, subscription="mail.copies")
def copy(event: Copied, session: Session, mailer: Mailer) -> None:
    box = PostBox("copies")
    box.record(Posted(text="copied"))
    session.add(box)
    for one in do:
        one(event)


def test_an_event_that_was_committed_before_is_closed_as_one_that_commits(cqrs: CQRS) -> None:
    # given an event whose handling has committed, when a worker died before it had closed
    cqrs.provide(Mailer, provider(cqrs))

    def committed_before(event: Any) -> None:
        raise_at_commit.append(DuplicateCommand("it is there", position=1, outcome="null"))

    raise_at_commit: list[Exception] = []
    append = cqrs.store.append

    def appending(*args: Any, **options: Any) -> Any:
        if raise_at_commit:
            raise raise_at_commit.pop()
        return append(*args, **options)

    cqrs.runtime.bus.repository._store.append = appending  # type: ignore[method-assign]
    do.append(committed_before)
    # when it comes again
    with cqrs.session() as session:
        box = PostBox("b")
        box.record(Copied())
        session.add(box)
    # then what closing writes is written
    assert story == ["opened", "closed after the commit"]


# ------------------------------------------------------------ factories


class ClosingMailer(SmtpMailer):
    def __enter__(self) -> Self:
        story.append("entered")
        return self

    def __exit__(self, *_: object) -> None:
        story.append("left")


class AsyncClosingMailer(SmtpMailer):
    async def __aenter__(self) -> Self:
        story.append("entered")
        return self

    async def __aexit__(self, *_: object) -> None:
        story.append("left")


def generator() -> Iterator[Mailer]:
    story.append("entered")
    yield SmtpMailer()
    story.append("left")


async def async_generator() -> AsyncIterator[Mailer]:
    story.append("entered")
    yield SmtpMailer()
    story.append("left")


@wraps(generator)
def decorated() -> Iterator[Mailer]:
    return generator()


def annotated() -> AbstractContextManager[Mailer]:
    return contextmanager(generator)()


async def coroutine() -> Mailer:
    await asyncio.sleep(0)
    return SmtpMailer()


def awaitable() -> Awaitable[Mailer]:
    return coroutine()


class CallableFactory:
    def __call__(self) -> Iterator[Mailer]:
        yield from generator()


def needing(name: str) -> Iterator[Mailer]:
    yield from generator()


shared = ClosingMailer()

CLOSED: list[Any] = [
    generator, contextmanager(generator), decorated, annotated, ClosingMailer, CallableFactory(),
    partial(needing, "x"), async_generator, asynccontextmanager(async_generator),
    AsyncClosingMailer,
]  # fmt: skip

PLAIN: list[Any] = [SmtpMailer, lambda: SmtpMailer(), lambda: shared, coroutine, awaitable]


@pytest.mark.parametrize("factory", CLOSED, ids=range(len(CLOSED)))
def test_a_generator_or_a_context_manager_is_closed_after_the_handling(
    cqrs: CQRS, factory: Any
) -> None:
    cqrs.provide(Mailer, factory)
    cqrs.execute(PostSoon())
    assert story == ["entered", "smtp: hello", "handled", "left"]


@pytest.mark.parametrize("factory", PLAIN, ids=range(len(PLAIN)))
def test_what_a_plain_or_an_async_function_returns_is_given_as_it_is(
    cqrs: CQRS, factory: Any
) -> None:
    cqrs.provide(Mailer, factory)
    cqrs.execute(PostSoon())
    assert story == ["smtp: hello", "handled"]


def test_a_factory_that_hides_that_it_is_async_or_a_generator_is_refused(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, lambda: coroutine())
    with pytest.raises(RegistrationError, match="returned a coroutine, which it does not show"):
        cqrs.execute(PostSoon())
    with (
        cqrs.overriding(Mailer, factory=lambda: generator()),
        pytest.raises(RegistrationError, match="returned a generator"),
    ):
        cqrs.execute(Post())


def returns_a_list() -> Iterator[Mailer]:
    return iter([SmtpMailer()])


def returns_a_value() -> AbstractAsyncContextManager[Mailer]:
    return SmtpMailer()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        (returns_a_list, "expected a generator or a context manager"),
        (returns_a_value, "expected an async generator or a context manager"),
    ],
)
def test_a_factory_that_returns_nothing_to_enter_is_named(
    cqrs: CQRS, factory: Any, expected: str
) -> None:
    cqrs.provide(Mailer, factory)
    with pytest.raises(RegistrationError, match=expected) as raised:
        cqrs.execute(PostSoon())
    assert f"the factory of Mailer, {__name__}.{factory.__name__}" in str(raised.value)


def test_factories_ask_for_the_session_the_trace_and_one_another_and_share_what_is_made(
    cqrs: CQRS,
) -> None:
    # given
    clocks, seen = [], []

    def make_mailer(clock: Clock, session: Session, metadata: Metadata, name: str = "me") -> Mailer:
        seen.append((clock, session, metadata))
        return SmtpMailer(name)

    def make_clock() -> Clock:
        clocks.append(Clock())
        return clocks[-1]

    @command_handler(PostAll)
    def post_all(
        command: PostAll, session: Session, first: Mailer, clock: Clock, second: Mailer
    ) -> None:
        assert first is second
        seen.append((clock, session, current_metadata()))

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, make_clock)
    # when
    cqrs.execute(PostAll())
    # then
    assert len(clocks) == 1
    assert seen[0] == seen[1]
    # and the next handling has others
    cqrs.execute(PostAll())
    assert len(clocks) == 2


def test_parameters_may_be_written_in_every_way_that_python_has(cqrs: CQRS) -> None:
    # given
    seen: dict[str, Any] = {}

    @command_handler(PostOddly)  # type: ignore[arg-type]  # mypy loses count at *rest
    def post_oddly(
        command: PostOddly,
        annotated: Annotated[Mailer, "the one"],
        quoted: "Mailer",  # noqa: UP037
        url: ReadUrl,
        box: Box[int],
        missing: Box[str] | None,
        plain: Box[bytes] = Box(b"default"),  # noqa: B008
        *rest: Any,
        count: int = 3,
        optional: Mailer | None = None,
        with_default: Clock = Clock(),  # noqa: B008
        session: Session | None = None,
        **more: Any,
    ) -> None:
        seen.update(locals())

    cqrs.provide(Mailer, SmtpMailer)
    cqrs.provide(ReadUrl, lambda: ReadUrl("sqlite://"))
    cqrs.provide(Box[int], lambda: Box(7))
    # when
    cqrs.execute(PostOddly())
    # then
    assert isinstance(seen["annotated"], SmtpMailer)
    assert seen["annotated"] is seen["quoted"] is seen["optional"]
    assert seen["url"] == "sqlite://"
    assert seen["box"].content == 7
    assert seen["missing"] is None
    assert seen["plain"].content == b"default"
    assert (seen["count"], seen["rest"], seen["more"]) == (3, (), {})
    assert isinstance(seen["with_default"], Clock)
    assert isinstance(seen["session"], Session)


# ------------------------------------------------------------ mistakes


def test_a_handler_that_asks_for_what_nobody_provides_is_refused_when_a_worker_starts(
    cqrs: CQRS,
) -> None:
    cqrs.provide(Clock, Clock)
    with pytest.raises(HandlerSignatureError) as refused:
        cqrs.check_handlers()
    text = str(refused.value)
    assert "test_injection.post (" in text
    assert "the parameter 'mailer' asks for Mailer, which nobody provides" in text
    assert "a handler of a command is given (Metadata, Session)" in text
    assert "what the application provides (Clock)" in text
    assert "Write cqrs.provide(Mailer, …)" in text
    assert "in a test with scenario, scenario.providing(Mailer, …)" in text
    # and when it is first called
    for way in WAYS:
        with pytest.raises(HandlerSignatureError, match="which nobody provides"):
            way(cqrs, Post)
    with pytest.raises(HandlerSignatureError, match="which nobody provides"):
        cqrs.query(Ask())
    assert story == []
    # and not after it was provided
    cqrs.provide(Mailer, SmtpMailer)
    cqrs.check_handlers()
    cqrs.execute(Post())


def test_a_factory_that_asks_for_what_nobody_provides_is_named(cqrs: CQRS) -> None:
    def make_mailer(clock: Clock) -> Mailer:
        raise NotImplementedError

    cqrs.provide(Mailer, make_mailer)
    with pytest.raises(
        HandlerSignatureError,
        match=r"the factory of Mailer, .*make_mailer.*asked for by the handler .*\.post .*'clock'",
    ):
        cqrs.execute(Post())


def test_an_async_factory_for_a_sync_handler_is_refused_at_the_start(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, coroutine)
    cqrs.provide(Clock, Clock)
    for refuse in (cqrs.check_handlers, lambda: cqrs.execute(Post())):
        with pytest.raises(
            HandlerSignatureError,
            match=r"\.post .* asks for Mailer, whose factory, .*coroutine .*, is async",
        ):
            refuse()


def test_a_circle_is_named(cqrs: CQRS) -> None:
    def make_mailer(clock: Clock) -> Mailer:
        raise NotImplementedError

    def make_clock(box: Box[int]) -> Clock:
        raise NotImplementedError

    def make_box(mailer: Mailer) -> Box[int]:
        raise NotImplementedError

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, make_clock)
    cqrs.provide(Box[int], make_box)
    with pytest.raises(
        HandlerSignatureError, match=r"in a circle: Mailer → Clock → .*Box\[int\] → Mailer \(Mailer"
    ):
        cqrs.execute(Post())


def test_a_batch_has_no_session_for_a_factory(cqrs: CQRS) -> None:
    def make_mailer(session: Session) -> Mailer:
        raise NotImplementedError

    cqrs.provide(Mailer, make_mailer)
    cqrs.provide(Clock, Clock)
    with pytest.raises(HandlerSignatureError, match=r"'session' asks for Session.*note_many"):
        cqrs.check_handlers()


def test_a_type_is_provided_once(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, SmtpMailer)
    with pytest.raises(
        DuplicateRegistration,
        match=r"Mailer is provided by .*SmtpMailer.* and by .*generator.*cqrs.overriding",
    ):
        cqrs.provide(Mailer, generator)


@pytest.mark.parametrize("key", [
    Session, Metadata, RecordedEvent, RecordedEvent[Posted], Post, Posted, Ask, Message, str, int,
    list[int], None, Mailer | Clock, "Mailer", Any,
])  # fmt: skip
def test_what_the_package_gives_messages_and_builtins_cannot_be_provided(
    cqrs: CQRS, key: Any
) -> None:
    with pytest.raises(RegistrationError, match="can't be provided: "):
        cqrs.provide(key, lambda: None)
    with pytest.raises(RegistrationError, match="can't be provided: "), cqrs.overriding(key, None):
        pass


def test_a_factory_that_nothing_can_be_given_to_is_refused(cqrs: CQRS) -> None:
    def counting(count: int) -> Mailer:
        raise NotImplementedError

    def bare(count) -> Mailer:
        raise NotImplementedError

    def by_position(clock: Clock, /) -> Mailer:
        raise NotImplementedError

    for factory, text in (
        (counting, "'count' is annotated with int"), (bare, "has no annotation"),
        (by_position, "'clock' is positional-only"),
    ):  # fmt: skip
        with pytest.raises(RegistrationError, match=text):
            cqrs.provide(Mailer, factory)
    with pytest.raises(RegistrationError, match="expected a factory"):
        cqrs.provide(Mailer, SmtpMailer())  # type: ignore[arg-type]


def test_a_parameter_of_a_handler_that_is_no_class_or_by_position_is_refused_at_once() -> None:
    with pytest.raises(HandlerSignatureError, match=r"'one' is annotated with .*Mailer.*Clock"):

        @command_handler(Refused)
        def either(command: Refused, one: Mailer | Clock) -> None: ...

    with pytest.raises(HandlerSignatureError, match="'mailer' is positional-only"):

        @command_handler(Refused)
        def by_position(command: Refused, mailer: Mailer, /) -> None: ...


# ------------------------------------------------------------ tests override


def test_a_test_gives_something_else_inside_of_a_block(cqrs: CQRS) -> None:
    # given
    cqrs.provide(Mailer, lambda: SmtpMailer("real"))
    # when
    with cqrs.overriding(Mailer, SmtpMailer("fake")):
        cqrs.execute(Post(text=""))
        with cqrs.overriding(Mailer, factory=lambda: SmtpMailer("inner")):
            cqrs.execute(PostSoon(text=""))
        cqrs.execute(Post(text=""))
    cqrs.execute(Post(text=""))
    # then
    told = [one.partition(":")[0] for one in story if ":" in one]
    assert told == ["fake", "inner", "fake", "real"]


def test_a_block_ends_with_an_exception_too_and_blocks_may_overlap(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, lambda: SmtpMailer("real"))
    with contextlib.suppress(KeyError), cqrs.overriding(Mailer, SmtpMailer("fake")):
        raise KeyError
    one = cqrs.overriding(Mailer, SmtpMailer("one"))
    two = cqrs.overriding(Mailer, SmtpMailer("two"))
    for step in (
        lambda: None, one.__enter__, two.__enter__, lambda: one.__exit__(None, None, None),
        lambda: two.__exit__(None, None, None),
    ):  # fmt: skip
        step()
        cqrs.execute(Post(text=""))
    told = [line.partition(":")[0] for line in story if ":" in line]
    assert told == ["real", "one", "two", "two", "real"]


def test_an_override_counts_in_every_thread_and_threads_may_override_at_once(cqrs: CQRS) -> None:
    cqrs.provide(Mailer, SmtpMailer)

    def override() -> None:
        for _ in range(200):
            with cqrs.overriding(Mailer, SmtpMailer("fake")):
                cqrs.query(Ask())

    threads = [threading.Thread(target=override) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(story) == {"fake: asked"}
    cqrs.query(Ask())
    assert story[-1] == "smtp: asked"


def test_a_scenario_provides_what_handlers_ask_for(scenario: Scenario) -> None:
    story.clear()
    do.clear()
    mailer = SmtpMailer("fake")
    (
        scenario.providing(Mailer, mailer)
        .given(PostBox, "a", Posted(text="before"))
        .when(Post(id="a"))
        .then(Posted(text="hello"))
    )
    scenario.providing(Mailer, factory=lambda: SmtpMailer("made")).when(Ask()).returns("answer")
    assert story == ["fake: hello", "handled", "made: asked"]


def test_a_handler_that_asks_for_nothing_has_no_plan(cqrs: CQRS) -> None:
    @command_handler(PostNothing)
    def post_nothing(command: PostNothing, session: Session) -> None: ...

    cqrs.execute(PostNothing())
    assert not cqrs.runtime.bus.find(PostNothing()).asked
    assert not cqrs.providers._plans


def test_middleware_is_around_the_making_and_the_closing() -> None:
    # given
    story.clear()
    do.clear()

    @contextmanager
    def tell(call: Any) -> Iterator[None]:
        story.append("in")
        yield
        story.append("out")

    app = Celery("mail", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", broker_url="memory://")
    cqrs = CQRS(app, middleware=[tell])
    cqrs.provide(Mailer, provider(cqrs))
    # when
    cqrs.query(Ask())
    # then
    assert story == ["in", "opened", "smtp: asked", "closed without a commit", "out"]
    app.close()


#: The handlers of this module, which are declared while its own tests run.
MINE = {k: d for k, d in definitions._by_key.items() if d.function.__module__ == __name__}
for mine in MINE:
    del definitions._by_key[mine]
