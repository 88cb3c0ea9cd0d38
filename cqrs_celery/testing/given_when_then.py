"""Test aggregates in the words of events: given what happened, when this is done, then that.

    def test_items_are_checked_in():
        (
            given(InventoryItem, "42", ItemCreated(name="Bolt"))
            .when(InventoryItem.check_in, 5)
            .then(ItemsCheckedIn(count=5))
        )

    def test_nothing_is_not_checked_in():
        given(InventoryItem, "42").when(lambda item: item.check_in(0)).raises(ValueError)

    def test_an_item_is_created():
        when(InventoryItem.create, "42", name="Bolt").then(ItemCreated(name="Bolt"))

No store takes part. Each event is written as JSON and read again, as on its way through one: what
can't be stored is refused, and what is compared is what would be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar

from ..domain.aggregate import Aggregate
from ..domain.lifecycle import build, replay
from ..messages.message import Event
from .comparing import are_same, read_again

A = TypeVar("A", bound=Aggregate)
X = TypeVar("X", bound=BaseException)
P = ParamSpec("P")


def given(cls: type[A], id: str, *history: Event) -> Given[A]:
    """Rebuild an aggregate from what has happened to it.

    Args:
        cls: its class.
        id: its id.
        history: oldest first; empty for a new aggregate.
    """
    return Given(cls, id, history)


def when(create: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> Outcome[A]:
    """Make an aggregate, for tests of its creation.

    Args:
        create: returns the new aggregate.
        args: passed on to it.
        kwargs: passed on to it.
    """
    return _attempt(create, args, kwargs, aggregate=None, history=())


@dataclass(frozen=True)
class Given(Generic[A]):
    """An aggregate's history, to which something can be done as often as wanted."""

    cls: type[A]
    id: str
    history: tuple[Event, ...]

    def when(
        self, action: Callable[Concatenate[A, P], Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Outcome[A]:
        """Do something to the aggregate.

        Args:
            action: takes the aggregate first: a method of its class, or a lambda.
            args: passed on to it.
            kwargs: passed on to it.
        """
        aggregate = build(self.cls, self.id)
        past = [read_again(event) for event in self.history]
        replay(aggregate, (_Past(e, self.id, v) for v, e in enumerate(past, 1)))
        return _attempt(action, (aggregate, *args), kwargs, aggregate, self.history)


@dataclass(frozen=True)
class Outcome(Generic[A]):
    """The outcome of an action: events, or an exception.

    Attributes:
        action: what was done, in words.
        history: what had happened before.
        result: what the action returned.
        error: what it raised, if it did.
    """

    action: str
    history: tuple[Event, ...]
    subject: A | None
    result: Any
    error: Exception | None

    @property
    def aggregate(self) -> A:
        """The aggregate as it is now, to look at its state.

        Raises:
            AssertionError: it was not made, since making it raised.
        """
        if self.subject is None:
            self._fail("an aggregate", self._found())
        return self.subject

    def then(self, *expected: Event) -> Outcome[A]:
        """Check that exactly these events were recorded, in this order; without any, none.

        Raises:
            AssertionError: others were, or the action raised.
            UnwritableMessage: an expected event could not have been stored.
        """
        __tracebackhide__ = True
        if self.error is not None or not are_same(self._recorded(), expected):
            self._fail(_listed(expected), self._found())
        return self

    def raises(self, expected: type[X], *, match: str = "") -> X:
        """Check that the action raised an exception, and return it.

        Args:
            expected: its class, or one above.
            match: a regular expression that is found in its text.

        Raises:
            AssertionError: it raised nothing, or something else.
        """
        __tracebackhide__ = True
        if not isinstance(self.error, expected) or not re.search(match, str(self.error)):
            text = f" with a text that matches {match!r}" if match else ""
            self._fail(f"{expected.__qualname__}{text}", self._found())
        return self.error

    def _recorded(self) -> tuple[Event, ...]:
        pending = self.subject.pending_events if self.subject is not None else ()
        return tuple(recorded.event for recorded in pending)

    def _found(self) -> str:
        if self.error is not None:
            return f"{type(self.error).__qualname__}: {self.error}"
        return _listed(self._recorded())

    def _fail(self, expected: str, found: str) -> NoReturn:
        __tracebackhide__ = True
        raise AssertionError(
            f"given    {_listed(self.history)}\n"
            f"when     {self.action}\n"
            f"expected {expected}\n"
            f"found    {found}"
        ) from self.error


@dataclass(frozen=True)
class _Past:
    event: Event
    aggregate_id: str
    version: int


def _attempt(
    action: Callable[..., Any],
    args: Iterable[Any],
    kwargs: dict[str, Any],
    aggregate: Any,
    history: tuple[Event, ...],
) -> Outcome[Any]:
    words = [repr(arg) for arg in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
    result, error = None, None
    try:
        result = action(*args, **kwargs)
    except Exception as raised:  # noqa: BLE001  whatever it is, it is the outcome
        error = raised
    return Outcome(
        action=f"{getattr(action, '__qualname__', action)}({', '.join(words)})",
        history=history,
        subject=result if aggregate is None else aggregate,
        result=result,
        error=error,
    )


def _listed(events: Iterable[Event]) -> str:
    return "\n         ".join(map(repr, events)) or "nothing"
