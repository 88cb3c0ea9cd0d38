"""A stand-in for the event store, for an application that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from ..dispatch.definitions import Definition
from ..errors import InvalidSetting
from ..store.events import (
    CommandOutcome,
    CommandRecord,
    Committed,
    Lease,
    StoredEvent,
    StreamAppend,
)
from ..store.ports import EventStore
from ..store.stream import StreamName


class NoEventStore:
    """An event store that keeps nothing; each use raises the error that says why.

    Publishing messages, commands without aggregates, and queries need no event store.

    Args:
        error: says why there is no event store.
    """

    def __init__(self, error: InvalidSetting) -> None:
        self.error = error

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Refuse.

        Raises:
            InvalidSetting: always.
        """
        self._refuse()

    def read_stream(
        self, stream: StreamName, *, after_version: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Refuse.

        Raises:
            InvalidSetting: always.
        """
        self._refuse()

    def read_all(
        self, *, after_position: int = 0, limit: int | None = None
    ) -> Sequence[StoredEvent]:
        """Refuse.

        Raises:
            InvalidSetting: always.
        """
        self._refuse()

    def find_command(self, command_id: str) -> CommandOutcome | None:
        """Return None: nothing was ever committed."""
        return None

    def close(self) -> None:
        """Do nothing."""

    def _refuse(self) -> NoReturn:
        raise self.error


def check_store(
    store: EventStore,
    declared: Iterable[Definition],
    takes_session: Callable[[Definition], bool],
) -> None:
    """Check that there is an event store, if a handler takes a session or an event.

    Args:
        store: the application's event store.
        declared: its handlers.
        takes_session: returns whether a handler takes a session.

    Raises:
        InvalidSetting: there is no event store, but a handler takes a session or an event.
    """
    if not isinstance(store, NoEventStore):
        return
    for definition in declared:
        is_for_events = any(cls.__kind__ == "event" for cls in definition.messages)
        if is_for_events or takes_session(definition):
            raise store.error
