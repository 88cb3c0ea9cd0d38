"""Refuse to commit events that the event store would never deliver to their subscribers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..dispatch.definitions import Definition, definitions
from ..errors import InvalidSetting
from ..messages.registry import where
from ..store.capabilities import capabilities_of
from ..store.ports import EventStore
from .no_store import NoEventStore

#: How a store delivers: within its append, by a relay, or by means of its own.
CAPABILITIES = "register and unregister; or outbox and leadership; or delivers = True"


def delivers(store: EventStore) -> bool:
    """Return whether events committed to a store reach their subscribers."""
    return isinstance(store, NoEventStore) or capabilities_of(store).reaches_subscribers


def check_delivery(store: EventStore) -> None:
    """Check that a store delivers, if a function of this process subscribes to events.

    Raises:
        InvalidSetting: the store does not deliver; the text says what it lacks.
    """
    if not delivers(store):
        for definition in definitions.all():
            if any(cls.__kind__ == "event" for cls in definition.messages):
                raise _undelivered(store, definition)


def refusing_undelivered(store: EventStore) -> Callable[[Iterable[type[Any]]], None] | None:
    """Return a check that refuses events with subscribers, or None if the store delivers."""
    if delivers(store):
        return None

    def check(events: Iterable[type[Any]]) -> None:
        for event in dict.fromkeys(events):
            for definition in definitions.subscribers_of(event):
                raise _undelivered(store, definition)

    return check


def _undelivered(store: EventStore, definition: Definition) -> InvalidSetting:
    name = type(store).__qualname__
    return InvalidSetting(
        f"CQRS(app, store=…) was given a {name} that does not deliver: it has neither register and"
        " unregister, as a store that delivers within its append, nor an outbox and leadership, for"
        f" a relay. {where(definition.function)} subscribes to events, and would never get one. Let"
        " a wrapper forward capabilities, or these, to the store in it; in place of a store in"
        " memory, set cqrs_event_store = 'memory://'; a store that reaches subscribers by means of"
        " its own has delivers = True.",
        setting="store",
        accepted=CAPABILITIES,
    )
