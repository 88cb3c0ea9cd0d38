"""Test handlers and subscriptions in one process: given what happened, when this, then that.

    def test_a_sold_out_item_is_ordered(scenario):
        (
            scenario.given(InventoryItem, "42", ItemCreated(name="Bolt"), ItemsCheckedIn(count=1))
            .when(SellItems(id="42", count=1))
            .then(ItemsSold(count=1))
            .sends(OrderItems(id="42"))
        )

The application is a real one, on a store in memory: commands run at once where they are sent,
their events flow to the subscriptions, and what these commit flows on. Each message is encoded and
decoded as on its way through a broker. A `scenario` comes from the pytest plugin of this package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast, overload

import celery
from celery import _state, states
from celery.result import EagerResult
from celery.signals import task_prerun

from ..app.cqrs import CQRS
from ..app.providing import Made, replacement
from ..dispatch.command_task import CommandTask
from ..dispatch.definitions import definitions
from ..dispatch.in_process import put_off
from ..dispatch.middleware import Middleware
from ..dispatch.typed import Publishable
from ..domain.aggregate import Aggregate
from ..errors import SubscriptionFailed
from ..messages.message import Command, Event, Message, Query
from ..messages.metadata import new_id
from ..store.decoding import recorded_events
from ..store.events import StoredEvent
from .comparing import are_same, read_again

T = TypeVar("T")
X = TypeVar("X", bound=BaseException)

#: Celery's settings that let everything happen at once.
SETTINGS = {
    "cqrs_event_store": "memory://",
    "task_always_eager": True,
    "task_eager_propagates": True,
    "task_store_eager_result": False,
    "broker_url": "memory://",
}


class InMemoryCQRS(CQRS):
    """An application in which nothing leaves the process.

    Args:
        app: has `SETTINGS`.
        middleware: around every handler, as in production.

    Attributes:
        sent: the commands that were sent, in order; those to handlers elsewhere are kept, not run.
        published: the messages that were published, in order.
    """

    #: Commands of other applications are kept here, too, and never sent by those.
    takes_everything = True

    def __init__(self, app: celery.Celery, *, middleware: Iterable[Middleware] = ()) -> None:
        super().__init__(app, middleware=middleware)
        self.sent: list[Command] = []
        self.published: list[Message] = []
        self._is_quiet = False
        self._put_off: set[str] = set()
        task_prerun.connect(self._on_task)
        put_off.connect(self._on_put_off)

    def send_command(self, command: Command, **options: Any) -> Any:
        """Send a command, as `CQRS.send_command` does; one for another service is kept."""
        if definitions.handler_of(type(command)) is not None:
            return super().send_command(command, **options)
        self.sent.append(command)
        return EagerResult(options.get("task_id") or new_id(), None, states.PENDING)

    def publish(self, message: Publishable, *args: Any, **options: Any) -> Any:
        """Publish a message, as `CQRS.publish` does."""
        self.published.append(cast(Message, message))
        return super().publish(message, *args, **options)

    @contextmanager
    def history(self) -> Iterator[None]:
        """Treat what is committed inside as the past: no subscription gets it."""
        self._is_quiet = True
        try:
            yield
        finally:
            self._is_quiet = False

    def close(self) -> None:
        """Forget the application."""
        task_prerun.disconnect(self._on_task)
        put_off.disconnect(self._on_put_off)
        self.app.close()

    def _deliver(self, events: Sequence[StoredEvent]) -> None:
        if not self._is_quiet:
            super()._deliver(events)

    def _on_put_off(self, sender: Any = None, task_id: str = "", args: Any = (), **_: Any) -> None:
        self._note(sender, args)
        self._put_off.add(task_id)

    def _on_task(self, sender: Any = None, task_id: str = "", args: Any = (), **_: Any) -> None:
        if task_id in self._put_off:
            self._put_off.remove(task_id)
        else:
            self._note(sender, args)

    def _note(self, task: Any, args: Any) -> None:
        if isinstance(task, CommandTask) and task.app is self.app and args:
            (given,) = args
            is_command = isinstance(given, Command)
            self.sent.append(given if is_command else self._read(given))

    def _read(self, plain: Any) -> Command:
        command: Command = self.runtime.serializer.from_plain("command", plain)
        return command


@contextmanager
def in_memory(
    application: str, *, middleware: Iterable[Middleware] = (), **settings: Any
) -> Iterator[InMemoryCQRS]:
    """Provide a new application of this process, which is Celery's current one meanwhile.

    Args:
        application: its name, in front of names without a dot.
        middleware: around every handler.
        settings: further ones of Celery, or others than `SETTINGS`.
    """
    before = _state._get_current_app()
    app = celery.Celery(application, changes={**SETTINGS, **settings}, set_as_current=True)
    cqrs = InMemoryCQRS(app, middleware=middleware)
    try:
        yield cqrs
    finally:
        cqrs.close()
        _state._set_current_app(before)


class Scenario:
    """A test's story: what has happened, and what is done then.

    Args:
        cqrs: the application in which it plays.
    """

    def __init__(self, cqrs: InMemoryCQRS) -> None:
        self.cqrs = cqrs
        self._words: list[str] = []

    @overload
    def providing(self, cls: Callable[..., Any], value: Any, /) -> Scenario: ...
    @overload
    def providing(
        self, cls: Callable[..., T], /, *, factory: Callable[..., Made[T]]
    ) -> Scenario: ...
    def providing(
        self,
        cls: Callable[..., T],
        value: Any = None,
        /,
        *,
        factory: Callable[..., Made[T]] | None = None,
    ) -> Scenario:
        """Give handlers a value wherever they ask for a type, from now on; see `CQRS.overriding`.

        Args:
            cls: the type.
            value: what every handling is given, and nobody closes.
            factory: makes a value for each handling, in place of one value.
        """
        self.cqrs.providers.override(replacement(cls, value, factory))
        return self

    def given(self, cls: type[Aggregate], id: str, *history: Event) -> Scenario:
        """Record events as an aggregate's past; no subscription gets them.

        Args:
            cls: the aggregate's class.
            id: the aggregate's id.
            history: oldest first.
        """
        with self.cqrs.history(), self.cqrs.session() as session:
            aggregate = session.find(cls, id)
            if aggregate is None:
                aggregate = cls(id)
                session.add(aggregate)
            for event in history:
                aggregate.record(event)
        self._words += [f"{cls.__name__} {id}: {event!r}" for event in history]
        return self

    def happened(self, cls: type[Aggregate], id: str, *events: Event) -> Reaction:
        """Record events of an aggregate now, for tests of subscriptions."""

        def record() -> None:
            with self.cqrs.session() as session:
                aggregate = session.find(cls, id)
                if aggregate is None:
                    aggregate = cls(id)
                    session.add(aggregate)
                for event in events:
                    aggregate.record(event)

        words = ", ".join(map(repr, events))
        return self._react(record, f"{cls.__name__} {id}: {words}", skip=len(events))

    def when(self, action: Command | Query | Message | Callable[[], Any]) -> Reaction:
        """Carry out a command, ask a query, publish a message, or call a function.

        Args:
            action: what is done; a function takes nothing.
        """
        if isinstance(action, Command):
            # Read again, as a worker would get it.
            return self._react(lambda: self.cqrs.execute(read_again(action)).value, repr(action))
        if isinstance(action, Query):
            return self._react(lambda: self.cqrs.query(action), repr(action))
        if isinstance(action, Message):
            return self._react(lambda: self.cqrs.publish(action), repr(action), published=1)
        return self._react(action, getattr(action, "__qualname__", repr(action)))

    def _react(
        self, action: Callable[[], Any], words: str, *, skip: int = 0, published: int = 0
    ) -> Reaction:
        cqrs = self.cqrs
        position, sent = len(cqrs.store.read_all()), len(cqrs.sent)
        seen = len(cqrs.published) + published
        result, error = None, None
        try:
            result = action()
        except Exception as raised:  # noqa: BLE001  whatever it is, it is the outcome
            error = _of_function(raised)
        stored = cqrs.store.read_all(after_position=position)
        events = [one.event for one in recorded_events(stored, cqrs.runtime.serializer)]
        return Reaction(
            tuple(self._words), words, tuple(events[skip:]), tuple(cqrs.sent[sent:]),
            tuple(cqrs.published[seen:]), result, error,
        )  # fmt: skip


@dataclass(frozen=True)
class Reaction:
    """The outcome of an action: commits, commands, messages, or an error.

    Attributes:
        history: what had happened before, in words.
        action: what was done, in words.
        events: what was committed, by handlers and by subscriptions, in the order of the commits.
        commands: what was sent, in order.
        messages: what was published, in order.
        result: what the handler returned.
        error: what it raised, or a subscription did, if any.
    """

    history: tuple[str, ...]
    action: str
    events: tuple[Any, ...]
    commands: tuple[Command, ...]
    messages: tuple[Message, ...]
    result: Any
    error: Exception | None

    def then(self, *expected: Event) -> Reaction:
        """Check that exactly these events were committed, in this order; without any, none.

        Raises:
            AssertionError: others were, or something raised.
        """
        __tracebackhide__ = True
        return self._check(self.events, expected)

    def sends(self, *expected: Command) -> Reaction:
        """Check that exactly these commands were sent, in this order; without any, none.

        Raises:
            AssertionError: others were, or something raised.
        """
        __tracebackhide__ = True
        return self._check(self.commands, expected)

    def publishes(self, *expected: Message) -> Reaction:
        """Check that exactly these messages were published, in this order; without any, none.

        Raises:
            AssertionError: others were, or something raised.
        """
        __tracebackhide__ = True
        return self._check(self.messages, expected)

    def returns(self, expected: Any) -> Reaction:
        """Check what the handler returned.

        Raises:
            AssertionError: it returned something else, or something raised.
        """
        __tracebackhide__ = True
        return self._check((self.result,), (expected,))

    def raises(self, expected: type[X], *, match: str = "") -> X:
        """Check that a handler or a subscription raised an exception, and return it.

        Args:
            expected: its class, or one above.
            match: a regular expression that is found in its text.

        Raises:
            AssertionError: nothing was raised, or something else.
        """
        __tracebackhide__ = True
        if not isinstance(self.error, expected) or not re.search(match, str(self.error)):
            text = f" with a text that matches {match!r}" if match else ""
            found = self._error() or _listed(self.events)
            self._fail(f"{expected.__qualname__}{text}", found)
        return self.error

    def _check(self, found: Sequence[Any], expected: Sequence[Any]) -> Reaction:
        __tracebackhide__ = True
        if self.error is not None or not are_same(found, expected):
            self._fail(_listed(expected), self._error() or _listed(found))
        return self

    def _error(self) -> str:
        return "" if self.error is None else f"{type(self.error).__qualname__}: {self.error}"

    def _fail(self, expected: str, found: str) -> NoReturn:
        __tracebackhide__ = True
        raise AssertionError(
            f"given    {_listed(self.history)}\n"
            f"when     {self.action}\n"
            f"expected {expected}\n"
            f"found    {found}"
        ) from self.error


def _listed(things: Sequence[Any]) -> str:
    words = (one if isinstance(one, str) else repr(one) for one in things)
    return "\n         ".join(words) or "nothing"


def _of_function(error: Exception) -> Exception:
    """Return what a subscription's function raised, or the error as it is."""
    while isinstance(error, SubscriptionFailed) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error
