"""Replay the events of a stream that an aggregate does not have yet.

An aggregate that comes from the cache or a snapshot names the last events that it was made of. The
read that brings the newer events also checks whether the stream has those.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TypeVar

from ..domain.aggregate import Aggregate, PendingEvent, apply
from ..domain.lifecycle import build, replay
from ..domain.state import as_made
from ..messages.serializer import Serializer
from ..store.capabilities import capabilities_of
from ..store.decoding import recorded_events, replayed_events
from ..store.events import KnownEvent, StoredEvent
from ..store.ports import EventStore
from ..store.stream import StreamName

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)


class OtherEvents(Exception):
    """The stream does not have the events that a kept state was made of."""

    def __init__(self, stream: StreamName, version: int) -> None:
        super().__init__(
            f"{stream} does not have the events that the state at version {version} was made of:"
            " the store went back to an earlier state, or is another store"
        )


class Replayer:
    """The replays of one store's streams.

    Args:
        store: the event store.
        serializer: decodes the events.
    """

    def __init__(self, store: EventStore, serializer: Serializer) -> None:
        self._store = store
        self._serializer = serializer
        self._histories = capabilities_of(store).histories

    def replay_newer(
        self,
        aggregate: Aggregate,
        stream: StreamName,
        newer: Sequence[StoredEvent] | None = None,
    ) -> None:
        """Apply the stored events after an aggregate's version, and read them first if necessary.

        Raises:
            OtherEvents: the stream does not have the events that the aggregate was made of.
        """
        ledger, version = aggregate.__ledger__, aggregate.version
        known = ledger.known
        if newer is None and self._histories is not None:
            history = self._histories.read_history(stream, known=known)
            if history is None:
                raise OtherEvents(stream, version)
            last_id = history.last_id
            replay(aggregate, replayed_events(history.events, stream, self._serializer))
        else:
            if newer is None:
                after = known[0][0] - 1 if known else 0
                newer = newer_than(known, self._store.read_stream(stream, after_version=after))
            if newer is None:
                raise OtherEvents(stream, version)
            last_id = newer[-1].event.event_id if newer else ""
            replay(aggregate, recorded_events(newer, self._serializer))
        if ledger.version == version:
            ledger.known = known[-1:]
        else:
            ledger.known = [(ledger.version, last_id)] if last_id else []

    def made(self, aggregate: A, recorded: Sequence[PendingEvent], since: int) -> A | None:
        """Return what an aggregate's events make; None if only a read can tell."""
        if aggregate.__ledger__.made_version != since:
            return None
        try:
            made = as_made(aggregate)
            for version, pending in enumerate(recorded, since + 1):
                # Decode it as a load would: an upcaster may turn it into other events.
                for event in self._serializer.read_again(pending.type, pending.data):
                    apply(made, event)
                    made.__ledger__.version = version
        except Exception as error:  # noqa: BLE001  it has been saved
            logger.warning(
                "the state that the events of %r make is not known: %s: %s",
                aggregate,
                type(error).__name__,
                error,
            )
            return None
        made.__ledger__.version = aggregate.version
        return made

    def read_again(self, aggregate: Aggregate, stream: StreamName) -> Aggregate:
        """Return what an aggregate's stored events make, starting from the state that was loaded.

        Raises:
            OtherEvents: the stream does not have the events that this state was made of.
            CQRSError: the events can't be read or replayed.
        """
        made = as_made(aggregate)
        if not made.__ledger__.known:
            # The state is of an earlier release, which did not keep the known events.
            made = build(type(aggregate), aggregate.id)
        self.replay_newer(made, stream)
        return made

    def confirm(self, aggregate: Aggregate, stream: StreamName) -> bool:
        """Return whether the stream of an aggregate just committed has all events it was made of.

        A commit checks only the version. If the store went back since the load, other writers may
        have written as many events as were lost.
        """
        ledger = aggregate.__ledger__
        *earlier, last = ledger.known or [(0, "")]
        if earlier:
            first, end = earlier[0][0], earlier[-1][0]
            try:
                events = self._store.read_stream(
                    stream, after_version=first - 1, limit=end - first + 1
                )
            except Exception as error:  # noqa: BLE001  it has been saved
                logger.debug("not known whether %s still has its events: %s", stream, error)
                return False
            ledger.known = [] if newer_than(earlier, events) is None else [last]
        return bool(ledger.known)


def newer_than(
    known: Sequence[KnownEvent], events: Sequence[StoredEvent]
) -> Sequence[StoredEvent] | None:
    """Return the events after those that are known.

    Args:
        known: versions and ids of events, oldest first.
        events: the stream's events, from the first known one on; all of them, if none is known.

    Returns:
        The events after the last known one; None if a known event is missing or another one.
    """
    if not known:
        return events
    first = known[0][0]
    for version, event_id in known:
        at = version - first
        if at >= len(events) or events[at].event.event_id != event_id:
            return None
    return events[known[-1][0] - first + 1 :]
