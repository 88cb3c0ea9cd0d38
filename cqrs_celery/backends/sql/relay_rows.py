"""The rows of `cqrs_relays` as an application's relay sees them: its own, and those of others.

Each statement commits by itself: a process that is frozen between two has nothing locked.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from sqlalchemy import Connection, and_, exists, insert, or_, select, true, update

from ...store.events import Place
from .access import SqlAccess
from .tables import checkpoints, events, relays

#: The name of the checkpoint of the time when a store had one relay.
OLD_CHECKPOINT: Final = "relay"

#: A claim that is nobody's.
NOBODY: Final = ""


class RelayRows:
    """Statements and conditions on the rows of relays.

    Args:
        store: has the rows.
        application: whose row is the own one.
        broker: names what its relay relays to in messages, without credentials.
        lease_ms: milliseconds for which a claim holds without being renewed.

    Attributes:
        lease_ms: as given.
    """

    def __init__(self, store: SqlAccess, application: str, *, broker: str, lease_ms: int) -> None:
        self._store = store
        self._application = application
        self._broker = broker
        self.lease_ms = lease_ms
        self._engine = store.engine.execution_options(isolation_level="AUTOCOMMIT")

    def is_mine(self) -> Any:
        """Return the condition that a row is this application's."""
        return relays.c.application == self._application

    def has_claim(self, token: str) -> Any:
        """Return the condition that a row is this application's, with a claim on it."""
        return and_(self.is_mine(), relays.c.token == token)

    def shares_broker(self, broker_id: str) -> Any:
        """Return the condition that a row's broker is one that has this id."""
        return and_(relays.c.broker_id == broker_id, relays.c.broker_id != "")

    def still_has_claim(self, token: str) -> Any:
        """Return the condition on other applications' rows that the claim on the own one holds."""
        own = relays.alias("own")
        return exists(
            select(own.c.token).where(own.c.application == self._application, own.c.token == token)
        )

    def live(self, broker_id: str, broker: str | None = None) -> Any:
        """Return the query for other applications that lead at a broker; by its name, too."""
        other = relays.alias("other")
        return select(other.c.application).where(
            other.c.application != self._application,
            other.c.broker_id == broker_id,
            other.c.broker_id != "",
            true() if broker is None else other.c.broker == broker,
            other.c.lease_until_ms > self._store.rules.now_ms(),
            other.c.lease_until_ms <= self.too_late(),
        )

    def too_late(self) -> Any:
        """Return a time to which no lease lasts, unless the clock was ahead when it began."""
        return self._store.rules.now_ms() + 2 * self.lease_ms

    def is_until(self, until_ms: int, now_ms: int) -> bool:
        """Return whether a lease until then has not ended."""
        return now_ms < until_ms <= now_ms + 2 * self.lease_ms

    def has_event(self, place: Place) -> Any:
        """Return the condition that the store has the event of a place."""
        if not place.position or not place.event_id:
            return true()
        store = self._store
        return exists(
            select(events.c.event_id).where(
                store.rules.after(place.position - 1),
                store.rules.up_to(place.position),
                events.c.event_id == place.event_id,
            )
        )

    def taking(self, known: str, broker_id: str, rivals: Any, token: str) -> Any:
        """Return the statement that writes a claim into the row, if that is free and as it was."""
        now_ms = self._store.rules.now_ms()
        return (
            update(relays)
            .where(
                self.is_mine(),
                relays.c.broker_id == known,
                or_(relays.c.lease_until_ms <= now_ms, relays.c.lease_until_ms > self.too_late()),
                ~exists(rivals),
            )
            .values(
                token=token,
                leader=_me(),
                lease_until_ms=now_ms + self.lease_ms,
                broker_id=broker_id,
                broker=self._broker,
            )
        )

    def ending_others(self, broker_id: str, token: str) -> Any:
        """Return the statement that ends the leases of other applications at a broker."""
        return (
            update(relays)
            .where(
                relays.c.application != self._application,
                relays.c.broker_id == broker_id,
                relays.c.broker_id != "",
                self.still_has_claim(token),
            )
            .values(token=NOBODY, lease_until_ms=0)
        )

    def is_there(self, query: Any) -> bool:
        """Return whether a query finds anything."""
        store = self._store
        return bool(store.rows(query, "look up the active relay", store.primary_reader))

    def first(self, what: str, *columns: Any) -> Any:
        """Return columns of the application's own row; None if it is not there."""
        store = self._store
        rows = store.rows(select(*columns).where(self.is_mine()), what, store.primary_reader)
        return rows[0] if rows else None

    def changed(self, what: str, *changes: Any) -> Any:
        """Change rows; returns the application's own afterwards, by which success is told.

        Each statement commits by itself: a process that is frozen between two has nothing locked.
        """
        store = self._store
        own = select(
            relays.c.token,
            relays.c.position,
            relays.c.event_id,
            relays.c.lease_until_ms,
            store.rules.now_ms().label("now_ms"),
        ).where(self.is_mine())

        def change() -> Any:
            with self._engine.connect() as connection:
                for statement in changes:
                    connection.execute(statement)
                return connection.execute(own).first()

        # What is repeated does the same: the claim's token is in it.
        return store.attempt_anew(what, change)

    def make(self) -> None:
        """Make the application's own row, unless another worker was quicker."""
        store = self._store
        old = store.rows(
            select(checkpoints.c.position).where(checkpoints.c.name == OLD_CHECKPOINT),
            "look up the relay's checkpoint",
            store.primary_reader,
        )
        row = {
            "application": self._application,
            "broker_id": "",
            "broker": "",
            "leader": "",
            "token": NOBODY,
            "lease_until_ms": 0,
            "position": old[0][0] if old else None,
            "event_id": "",
        }

        def make(connection: Connection) -> None:
            # Another worker may have been quicker.
            if connection.execute(select(relays.c.token).where(self.is_mine())).first() is None:
                connection.execute(insert(relays).values(row))

        store.run_each("make the relay's row", make)


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
