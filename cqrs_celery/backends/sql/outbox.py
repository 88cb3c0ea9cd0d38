"""Be the outbox: the events' table, read in order by a relay; and what the relay must remember.

How far the relay has come is the queue's to know, where the queue is our own: enqueuing and
remembering are one step there. What is here is for when the queue has lost its data: up to where
every subscriber has handled everything, and who the subscribers are. With any other broker, it is
how far the relay has sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from sqlalchemy import Connection, Table, delete, func, insert, select, update

from ...store.events import StoredEvent, Subscriber
from .tables import checkpoints, events, identity, subscribers

if TYPE_CHECKING:
    from .event_store import SqlEventStore

#: The name of the relay's checkpoint.
RELAY: Final = "relay"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Subscriber).decode


class Pending(NamedTuple):
    """Say how many events stand behind a position, and when the oldest of them was recorded."""

    events: int
    oldest_at: datetime | None


class SqlOutbox:
    """Be the outbox of a SQL event store.

    Args:
        store: whose events it has.
    """

    def __init__(self, store: SqlEventStore) -> None:
        self.store = store

    @cached_property
    def store_id(self) -> str:
        """What tells the store from all others; made with its tables.

        Raises:
            SchemaError: there are no tables.
            StoreUnavailable: the server does not answer.
        """
        return str(self._first("look up the store's id", select(identity.c.store_id))[0])

    def read(self, after_position: int, limit: int) -> Sequence[StoredEvent]:
        """Return events in order, none of which may be overtaken any more."""
        return self.store.read_all(after_position=after_position, limit=limit)

    def last_position(self) -> int:
        """Return the position of the last event; 0 if there is none."""
        last = select(self.store._position()).order_by(self.store._order().desc()).limit(1)
        row = self._first("look up the last position", last)
        return int(row[0]) if row else 0

    def pending(self, after_position: int) -> Pending:
        """Return what stands behind a position."""
        statement = select(func.count(), func.min(events.c.recorded_at)).where(
            self.store._after(after_position)
        )
        count, oldest = self._first("count what is pending", statement)
        if oldest is not None and oldest.tzinfo is None:
            oldest = oldest.replace(tzinfo=UTC)
        return Pending(count, oldest)

    # ------------------------------------------------------------ checkpoint

    def checkpoint(self) -> int | None:
        """Return the relay's checkpoint; None if no relay has ever run."""
        statement = select(checkpoints.c.position).where(checkpoints.c.name == RELAY)
        row = self._first("look up the relay's checkpoint", statement)
        return None if row is None else int(row[0])

    def save_checkpoint(self, position: int) -> None:
        """Remember the relay's checkpoint."""
        values = {"position": position, "updated_at": self.store._time(datetime.now(UTC))}
        self._put("save the relay's checkpoint", checkpoints, RELAY, values)

    # ------------------------------------------------------------ subscribers

    def subscribers(self) -> list[Subscriber]:
        """Return all subscribers."""
        rows = self.store._rows(
            select(self.store._as_text(subscribers.c.subscriber)),
            "read the subscribers",
            self.store._primary_reader,
        )
        return [_decode(row[0]) for row in rows]

    def register(self, subscriber: Subscriber) -> None:
        """Remember a subscriber, in place of what was known under its name."""
        values = {
            "subscriber": _encode(subscriber).decode(),
            "registered_at": self.store._time(datetime.now(UTC)),
        }
        self._put(f"register {subscriber.name}", subscribers, subscriber.name, values)

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics, altogether if none is left; returns from how many."""
        for known in self.subscribers():
            if known.name != name:
                continue
            left = tuple(topic for topic in known.topics if topic not in topics)
            if left:
                self.register(known._replace(topics=left))
            else:
                self._remove(name)
            return len(known.topics) - len(left)
        return 0

    def _remove(self, name: str) -> None:
        removal = delete(subscribers).where(subscribers.c.name == name)
        self.store.write_in_transaction(
            f"unregister {name}", lambda connection: connection.execute(removal)
        )

    def _put(self, what: str, table: Table, name: str, values: dict[str, Any]) -> None:
        """Write a row under its name, in place of the one that is there."""

        def put(connection: Connection) -> None:
            change = update(table).where(table.c.name == name).values(**values)
            if not self.store.changed(connection, change):
                connection.execute(insert(table).values(name=name, **values))

        self.store.write_in_transaction(what, put)

    def _first(self, what: str, statement: Any) -> Any:
        rows = self.store._rows(statement, what, self.store._primary_reader)
        return rows[0] if rows else None
