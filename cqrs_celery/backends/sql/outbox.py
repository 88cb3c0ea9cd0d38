"""The outbox: the events' table, read in order by a relay; and who gets its events.

How far the relay has come is the queue's to know, where the queue is our own: enqueuing and
remembering are one step there. Who the subscribers are is here as well, for when the queue has lost
its data. What the relay's leader remembers is in `leading`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from ...errors import StoreWentBack
from ...store.events import START, Place, StoredEvent, Subscriber
from ...store.reading import Reads
from ...store.refusals import check_text
from ...store.relay_ports import Pending
from .failures import schema_missing
from .reading import SqlReading
from .tables import events, identity, relays, subscribers

#: The application of subscribers that were registered before applications were told apart.
EVERY_APPLICATION: Final = ""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Subscriber).decode


class SqlOutbox:
    """The outbox of a SQL event store.

    Args:
        store: whose events it has.
    """

    def __init__(self, store: SqlReading) -> None:
        self.store = store
        self._store_id: str | None = None

    @property
    def store_id(self) -> str:
        """The id that tells the store from all others; made with its tables.

        It is looked up again where a connection was lost: the database may be another one then.

        Raises:
            SchemaError: there are no tables.
            StoreUnavailable: the server does not answer.
        """
        known = self._store_id
        if known is None:
            row = self._first("look up the store's id", select(identity.c.store_id))
            if row is None:
                raise schema_missing(self.store.where, "found no id of the store, expected one")
            known = self._store_id = str(row[0])
        return known

    def forget(self) -> None:
        """Forget which store it is."""
        self._store_id = None

    def read(self, after_position: int, limit: int) -> Sequence[StoredEvent]:
        """Return events of the primary in order, up to the first gap that may still be filled."""
        with Reads(from_primary=True):
            return self.store.read_all(after_position=after_position, limit=limit)

    def read_behind(self, place: Place, limit: int) -> Sequence[StoredEvent]:
        """Return the events behind a place, in order, if the store still has the same event there.

        Args:
            place: where the reader has come to.
            limit: the most to return.

        Raises:
            StoreWentBack: the store has another event there, or none.
            StoreUnavailable: the server does not answer.
        """
        if not place.position:
            return self.read(0, limit)
        found = self.read(place.position - 1, limit + 1)
        if found and found[0].global_position == place.position:
            if place.event_id in ("", found[0].event.event_id):
                return found[1:]
        elif self.has(place):
            # It was behind a gap that may still be filled.
            return ()
        raise StoreWentBack(
            f"could not read on behind position {place.position}, where the event"
            f" {place.event_id or 'of an earlier version'} was: {self.store.where} has another one"
            " there, or none. It is in an earlier state than it was, as after a backup was restored"
            " or a replica promoted that lagged.",
            position=place.position,
            event_id=place.event_id,
        )

    def has(self, place: Place) -> bool:
        """Return whether the store has the event of a place there; asked of the primary.

        A place without an event's id is there if the store has come so far.
        """
        if not place.position:
            return True
        at = self.place_before(place.position + 1)
        if not place.event_id:
            return self.last_position() >= place.position
        return at == place

    def place_before(self, position: int) -> Place:
        """Return the place of the last event in front of a position; `START` without one.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        found = self._first(
            f"look up the last event before position {position}",
            select(self.store.rules.position(), events.c.event_id)
            .where(self.store.rules.up_to(position - 1))
            .order_by(self.store.rules.order().desc())
            .limit(1),
        )
        return START if found is None else Place(int(found[0]), found[1])

    def last_position(self) -> int:
        """Return the position of the last event; 0 if there is none."""
        last = (
            select(self.store.rules.position()).order_by(self.store.rules.order().desc()).limit(1)
        )
        row = self._first("look up the last position", last)
        return int(row[0]) if row else 0

    def pending(self, after_position: int) -> Pending:
        """Return the events behind a position."""
        statement = select(func.count(), func.min(events.c.recorded_at)).where(
            self.store.rules.after(after_position)
        )
        count, oldest = self._first("count what is pending", statement)
        if oldest is not None and oldest.tzinfo is None:
            oldest = oldest.replace(tzinfo=UTC)
        return Pending(count, oldest)

    # ------------------------------------------------------------ subscribers

    def subscribers(self, application: str, broker_id: str = "") -> list[Subscriber]:
        """Return the subscribers of an application, and of those that have the same broker.

        Args:
            application: whose.
            broker_id: the broker; empty for the application's own alone.
        """
        sharing = select(relays.c.application).where(
            relays.c.broker_id == broker_id, relays.c.broker_id != ""
        )
        rows = self.store.rows(
            select(self.store.rules.as_text(subscribers.c.subscriber)).where(
                or_(
                    subscribers.c.application.in_((application, EVERY_APPLICATION)),
                    subscribers.c.application.in_(sharing),
                )
            ),
            "read the subscribers",
            self.store.primary_reader,
        )
        return [_decode(row[0]) for row in rows]

    def register(self, application: str, subscriber: Subscriber) -> None:
        """Register a subscriber of an application, in place of the one with the same name.

        Raises:
            InvalidText: one of its texts can't be kept by every store.
            StoreUnavailable: the server does not answer.
        """
        _check(application, subscriber.name, *subscriber.topics, subscriber.queue)
        for text in subscriber.head:
            # In JSON, NUL has an escape.
            check_text(text.replace("\0", ""), f"the head of {subscriber.name}'s messages")
        self.store.run_each(
            f"register {subscriber.name}",
            lambda connection: self._put(connection, application, subscriber),
        )

    def _put(self, connection: Connection, application: str, subscriber: Subscriber) -> None:
        values = {
            "subscriber": _encode(subscriber).decode(),
            "registered_at": self.store.rules.to_time(datetime.now(UTC)),
        }
        is_it = _is(application, subscriber.name)
        if not self.store.rules.changed(
            connection, update(subscribers).where(is_it).values(**values)
        ):
            connection.execute(
                insert(subscribers).values(application=application, name=subscriber.name, **values)
            )
        # Last, so that it is registered at every moment.
        if application != EVERY_APPLICATION:
            is_old = _is(EVERY_APPLICATION, subscriber.name)
            connection.execute(delete(subscribers).where(is_old))

    def unregister(self, application: str, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics, altogether if none is left; returns from how many.

        What others register or remove at the same time stands: the row is locked from before it is
        read until it is written.

        Raises:
            InvalidText: its name can't be one of a subscriber.
            StoreUnavailable: the server does not answer.
            TransactionConflict: others were in its way as often as it was tried.
        """
        _check(application, name)
        is_it = or_(_is(application, name), _is(EVERY_APPLICATION, name))

        def remove(connection: Connection) -> int:
            # An UPDATE locks the row on every engine, and what is read after it is the newest.
            same = {"registered_at": subscribers.c.registered_at}
            if not self.store.rules.changed(
                connection, update(subscribers).where(is_it).values(same)
            ):
                return 0
            newest = (
                select(self.store.rules.as_text(subscribers.c.subscriber))
                .where(is_it)
                .order_by(subscribers.c.application.desc())
            )
            known = _decode(connection.execute(newest).all()[0][0])
            left = tuple(topic for topic in known.topics if topic not in topics)
            if not left:
                connection.execute(delete(subscribers).where(is_it))
            elif len(left) < len(known.topics):
                self._put(connection, application, known._replace(topics=left))
            return len(known.topics) - len(left)

        return self.store.transact(f"unregister {name}", remove)

    def _first(self, what: str, statement: Any) -> Any:
        rows = self.store.rows(statement, what, self.store.primary_reader)
        return rows[0] if rows else None


def _check(application: str, *texts: str) -> None:
    """Check that every store can keep a subscriber's names."""
    check_text(application, "the application's name")
    for text in texts:
        check_text(text, "a name, a topic or the queue of a subscriber")


def _is(application: str, name: str) -> ColumnElement[bool]:
    return and_(subscribers.c.application == application, subscribers.c.name == name)
