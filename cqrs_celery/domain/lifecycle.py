"""What a repository does with an aggregate: build it, replay its history, mark it as saved.

These are functions, and not methods, so that an aggregate's names stay its author's.
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
    """An event as replaying sees it; the store's RecordedEvent is one."""

    @property
    def event(self) -> Event | None:
        """The typed event; None for one that was dropped, whose version is taken."""

    @property
    def aggregate_id(self) -> str:
        """Whose it is."""

    @property
    def version(self) -> int:
        """Its place in the aggregate's stream, from 1."""


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
            f"{where(cls)} can't be built from an id alone: {error}. Give the other parameters of"
            " its __init__ defaults, or set them through an event.",
            aggregate_type=cls.__aggregate_type__,
        ) from error
    if "__ledger__" not in vars(aggregate) or aggregate.id != id:
        raise AggregateNotConstructible(
            f"{where(cls)} was built with the id {id!r} and does not have it; expected its __init__"
            " to call super().__init__(id)",
            aggregate_type=cls.__aggregate_type__,
        )
    return aggregate


def replay(aggregate: Aggregate, history: Iterable[HistoricEvent]) -> None:
    """Apply committed events, and move the version to the last one's.

    Args:
        aggregate: without pending events.
        history: oldest first, from the version after the aggregate's.

    Raises:
        ForeignEvent: an event is another aggregate's.
        EventOutOfOrder: a version is missing or there twice.
        UnhandledEvent: the class is strict and has no method for an event.
    """
    ledger = aggregate.__ledger__
    stream = f"{aggregate.__aggregate_type__}-{ledger.id}"
    for recorded in history:
        if recorded.aggregate_id != ledger.id:
            raise ForeignEvent(
                f"the history of {stream} holds {type(recorded.event).__qualname__} of the"
                f" aggregate {recorded.aggregate_id!r} at version {recorded.version}; expected"
                f" events of {ledger.id!r} alone",
                stream=stream,
                expected=ledger.id,
                found=recorded.aggregate_id,
            )
        if recorded.version != ledger.version + 1 and not _goes_on(recorded, ledger.version):
            raise EventOutOfOrder(
                f"the history of {stream} goes on with version {recorded.version}, expected"
                f" {ledger.version + 1}: a version is missing or there twice",
                stream=stream,
                expected=ledger.version + 1,
                found=recorded.version,
            )
        if recorded.event is not None:
            apply(aggregate, recorded.event)
        ledger.version = recorded.version


def _goes_on(recorded: HistoricEvent, version: int) -> bool:
    """Return whether an event is a later one of several that were stored as one."""
    return recorded.version == version and getattr(recorded, "part", 1) > 1


def mark_saved(aggregate: Aggregate, version: int) -> None:
    """Mark what an aggregate had pending as committed.

    Args:
        aggregate: of which everything pending was appended.
        version: its stream's, after the append.
    """
    ledger = aggregate.__ledger__
    if ledger.known or not ledger.version:
        # A new list: an instance that was restored from the same bytes may have the old one.
        ledger.known = [*ledger.known, (version, ledger.pending[-1].event_id)]
    ledger.version = version
    ledger.pending.clear()


def attach(aggregate: Aggregate) -> None:
    """Let an aggregate record: there is a session that will write it."""
    aggregate.__ledger__.is_detached = False


def detach(aggregate: Aggregate) -> None:
    """Let an aggregate record no more: its session has ended."""
    aggregate.__ledger__.is_detached = True


def _takes_id_alone(cls: type[Aggregate]) -> bool:
    try:
        inspect.signature(cls).bind("id")
    except TypeError:
        return False
    return True
