"""The operations of a repository on an aggregate: build it, replay its history, mark it as saved.

They are functions, not methods, so that the aggregate's author can use any name.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Protocol, TypeVar

from ..errors import AggregateNotConstructible, EventOutOfOrder, ForeignEvent
from ..messages.message import Event
from ..messages.registry import where
from .aggregate import Aggregate, apply

A = TypeVar("A", bound=Aggregate)


class HistoricEvent(Protocol):
    """An event as a replay needs it; the store's RecordedEvent is one."""

    @property
    def event(self) -> Event | None:
        """The typed event; None if an upcaster has dropped it, but its version stays taken."""

    @property
    def aggregate_id(self) -> str:
        """The id of the event's aggregate."""

    @property
    def version(self) -> int:
        """The event's place in the aggregate's stream, from 1."""


def build(cls: type[A], id: str) -> A:
    """Return a new aggregate, at version 0.

    Raises:
        AggregateNotConstructible: the class takes more than an id, or does not pass the id on.
    """
    try:
        aggregate = cls(id)
    except TypeError as error:
        if _takes_id_alone(cls):
            raise
        raise AggregateNotConstructible(
            f"{where(cls)} can't be built from just an id: {error}. Give the other parameters of"
            " its __init__ defaults, or set their attributes by an event.",
            aggregate_type=cls.__aggregate_type__,
        ) from error
    if "__ledger__" not in vars(aggregate) or aggregate.id != id:
        raise AggregateNotConstructible(
            f"{where(cls)} was built with the id {id!r}, but does not have it; expected its"
            " __init__ to call super().__init__(id)",
            aggregate_type=cls.__aggregate_type__,
        )
    return aggregate


def replay(aggregate: Aggregate, history: Iterable[HistoricEvent]) -> None:
    """Apply committed events, and set the aggregate's version to that of the last one.

    Args:
        aggregate: an aggregate without pending events.
        history: the events, oldest first, from the version after the aggregate's.

    Raises:
        ForeignEvent: an event belongs to another aggregate.
        EventOutOfOrder: a version is missing or occurs twice.
        UnhandledEvent: the class is strict and has no method for an event.
    """
    ledger = aggregate.__ledger__
    stream = f"{aggregate.__aggregate_type__}-{ledger.id}"
    for recorded in history:
        if recorded.aggregate_id != ledger.id:
            raise ForeignEvent(
                f"the history of {stream} holds {type(recorded.event).__qualname__} of the"
                f" aggregate {recorded.aggregate_id!r} at version {recorded.version}; expected only"
                f" events of {ledger.id!r}",
                stream=stream,
                expected=ledger.id,
                found=recorded.aggregate_id,
            )
        if recorded.version != ledger.version + 1 and not _goes_on(recorded, ledger.version):
            raise EventOutOfOrder(
                f"the history of {stream} continues with version {recorded.version}, expected"
                f" {ledger.version + 1}: a version is missing or occurs twice",
                stream=stream,
                expected=ledger.version + 1,
                found=recorded.version,
            )
        if recorded.event is not None:
            apply(aggregate, recorded.event)
        ledger.version = recorded.version


def _goes_on(recorded: HistoricEvent, version: int) -> bool:
    """Return whether an event is a later part of one stored event that an upcaster has split."""
    return recorded.version == version and getattr(recorded, "part", 1) > 1


def mark_saved(aggregate: Aggregate, version: int) -> None:
    """Mark an aggregate's pending events as committed.

    Args:
        aggregate: an aggregate whose pending events were all appended.
        version: the version of its stream after the append.
    """
    ledger = aggregate.__ledger__
    if ledger.known or not ledger.version:
        # A new list, since another instance restored from the same bytes may hold the old one.
        ledger.known = [*ledger.known, (version, ledger.pending[-1].event_id)]
    ledger.version = version
    ledger.pending.clear()


def attach(aggregate: Aggregate) -> None:
    """Allow an aggregate to record events: an open session will write them."""
    aggregate.__ledger__.is_detached = False


def detach(aggregate: Aggregate) -> None:
    """Forbid an aggregate to record events: its session has ended."""
    aggregate.__ledger__.is_detached = True


def _takes_id_alone(cls: type[Aggregate]) -> bool:
    try:
        inspect.signature(cls).bind("id")
    except TypeError:
        return False
    return True
