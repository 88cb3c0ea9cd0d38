"""The errors of a session: what it was given or asked that it can't keep its promises with."""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.aggregate import Aggregate
from ..errors import DuplicateInstance, SessionError
from ..store.ports import EventStore
from ..store.stream import StreamName


def not_added(stream: StreamName, events: Sequence[str], *, place: str) -> SessionError:
    """Return the error for an aggregate that recorded events, and was not added to the session.

    Args:
        stream: the aggregate's.
        events: the names of the events' classes.
        place: where the aggregate was made: a handler, or a block.
    """
    return SessionError(
        f"{stream} recorded {', '.join(events)} in a {place}, but is not in its session, so that"
        f" would be lost. Add what the {place} makes: session.add(aggregate); and use what"
        " session.get returns. Nothing was committed."
    )


def not_checking(store: EventStore) -> SessionError:
    """Return the error for a store that can't check the version of a stream without events."""
    return SessionError(
        "session.require_unchanged was used, but the event store does not declare that it checks"
        f" the versions of streams without events: {store!r}. Let its append do so, and declare"
        " checks_versions in its capabilities; or record an event."
    )


def not_read(aggregate: Aggregate) -> SessionError:
    """Return the error for an aggregate whose version can't be checked, since it was not read."""
    return SessionError(
        f"session.require_unchanged was given {aggregate!r}, which this session has not read;"
        " expected an aggregate with events that session.get or session.find has returned. A new"
        " one needs no check: if another writer makes it first, the commit fails."
    )


def two_instances(stream: StreamName, first: Aggregate, second: Aggregate) -> DuplicateInstance:
    """Return the error for two instances of one aggregate."""
    return DuplicateInstance(
        f"{stream} has two instances here, at versions {first.version} and {second.version};"
        " expected one, since neither knows what the other records. Use the instance that get"
        " returns.",
        stream=str(stream),
        expected=first.version,
        found=second.version,
    )
