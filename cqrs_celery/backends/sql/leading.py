"""Let one of several relays be the active one, by a lease in the database.

    leadership = store.leadership("shop", broker="redis://…")
    if leadership.claim():
        while leadership.holds():
            …

The row of an application says who leads, until when by the database's own clock, and for which
broker. A leader that is frozen, or cut off, does not renew its lease, and is replaced when that has
ended; each claim has a token of its own, by which what the former leader still does is told from
what the present one does. Nothing hangs on a connection, so a pooler may stand in between.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import Connection, and_, insert, select, update

from ...store.events import Place
from .tables import checkpoints, relays

if TYPE_CHECKING:
    from .event_store import SqlEventStore

#: Seconds for which a leader leads without renewing.
LEASE_S: Final = 4.0

#: Seconds after which it renews; in between it only looks.
RENEW_S: Final = 1.0

#: The name of the checkpoint of the time when a store had one relay.
OLD_CHECKPOINT: Final = "relay"

#: A claim that is nobody's.
_NOBODY: Final = ""


class Led(NamedTuple):
    """Say who leads an application's relays.

    Attributes:
        leader: host and process.
        broker_id: the id of the broker that it relays to; empty if none is known yet.
        broker: names it in messages, without credentials.
        until_ms: when the lease ends, in milliseconds of the database's clock.
        is_live: whether it has not ended yet.
    """

    leader: str
    broker_id: str
    broker: str
    until_ms: int
    is_live: bool


class Leadership:
    """Be one process's claim to be the active relay of an application; not for several threads.

    Args:
        store: has the row.
        application: whose relays they are.
        broker: names what they relay to in messages, without credentials.
        lease_s: seconds for which a claim holds without being renewed.

    Attributes:
        token: tells the present claim from all others; empty without one.
        broker_id: the broker that was relayed to when the claim was made; empty if there was none.
    """

    def __init__(
        self, store: SqlEventStore, application: str, *, broker: str, lease_s: float = LEASE_S
    ) -> None:
        self._store = store
        self._application = application
        self._broker = broker
        self._lease_ms = int(lease_s * 1000)
        self._engine = store.engine.execution_options(isolation_level="AUTOCOMMIT")
        self._renewed_at = 0.0
        self.token = _NOBODY
        self.broker_id = ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._application} in {self._store.where}>"

    # ------------------------------------------------------------ lease

    def led(self) -> Led | None:
        """Return who leads, or led last; None if nobody ever did.

        Raises:
            SchemaError: the tables are missing or of another version.
            StoreUnavailable: the server does not answer.
        """
        row = self._first(
            "look up the active relay",
            relays.c.leader,
            relays.c.broker_id,
            relays.c.broker,
            relays.c.lease_until_ms,
            self._store.now_ms().label("now_ms"),
        )
        if row is None:
            return None
        is_live = row.lease_until_ms > row.now_ms
        return Led(row.leader, row.broker_id, row.broker, row.lease_until_ms, is_live)

    def leader_of_another(self, broker_id: str) -> tuple[str, str] | None:
        """Return who relays to a broker for another application, and so for this one too.

        Args:
            broker_id: the broker.

        Returns:
            The leader, host and process, and its application; None if none leads there now.

        Raises:
            SchemaError: the tables are missing or of another version.
            StoreUnavailable: the server does not answer.
        """
        store = self._store
        live = select(relays.c.leader, relays.c.application).where(
            relays.c.broker_id == broker_id,
            relays.c.broker_id != "",
            ~self._is_mine(),
            relays.c.lease_until_ms > store.now_ms(),
        )
        rows = store._rows(live, "look up the active relay", store._primary_reader)
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def claim(self, broker_id: str) -> bool:
        """Become the active relay if there is none, with a lease from now on.

        Relays of other applications count if they have the same broker: they give it everything.

        Args:
            broker_id: the broker that is relayed to.

        Returns:
            Whether this one is it now.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        led = self.led()
        if led is None:
            self._make_row()
        elif led.is_live:
            return False
        token = secrets.token_hex(8)
        now_ms = self._store.now_ms()
        other = relays.alias()
        is_served = (
            select(other.c.application)
            .where(
                other.c.application != self._application,
                other.c.broker_id == broker_id,
                other.c.broker_id != "",
                other.c.lease_until_ms > now_ms,
            )
            .exists()
        )
        change = (
            update(relays)
            .where(self._is_mine(), relays.c.lease_until_ms <= now_ms, ~is_served)
            .values(token=token, leader=_me(), lease_until_ms=now_ms + self._lease_ms)
        )
        claimed_at = time.monotonic()
        row = self._changed("become the active relay", change)
        if row is None or row.token != token:
            return False
        self.token, self.broker_id, self._renewed_at = token, row.broker_id, claimed_at
        return True

    def holds(self) -> bool:
        """Say whether the claim still holds; the lease is renewed now and then.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        now = time.monotonic()
        what = "renew the active relay's lease"
        if now - self._renewed_at < RENEW_S:
            row = self._first(what, relays.c.token)
        else:
            until_ms = self._store.now_ms() + self._lease_ms
            row = self._changed(
                what, update(relays).where(self._has_claim()).values(lease_until_ms=until_ms)
            )
            self._renewed_at = now
        return row is not None and row.token == self.token

    def release(self) -> None:
        """Let another one lead at once; a second time does nothing.

        Raises:
            StoreUnavailable: the server does not answer; the lease ends by itself.
        """
        if self.token:
            change = update(relays).where(self._has_claim()).values(lease_until_ms=0)
            self._changed("give up the active relay's lease", change)
            self.token = _NOBODY

    # ------------------------------------------------------------ what belongs to the claim

    def checkpoint(self) -> Place | None:
        """Return up to where all is known to be handled, or sent; None if no relay has ever run.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        what = "look up the relay's checkpoint"
        row = self._first(what, relays.c.position, relays.c.event_id)
        return None if row is None or row.position is None else Place(row.position, row.event_id)

    def save_checkpoint(self, place: Place) -> bool:
        """Remember the checkpoint, if the claim still holds; returns whether it does.

        Applications that this one relays for, since they have the same broker, get the same.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        what = "save the relay's checkpoint"
        values = {"position": place.position, "event_id": place.event_id}
        change = update(relays).where(self._has_claim()).values(values)
        also = (
            update(relays)
            .where(self._shares_broker(), ~self._is_mine(), self._still_has_claim())
            .values(values)
        )
        row = self._changed(what, change, also)
        return row is not None and row.token == self.token

    def keep_broker(self, broker_id: str) -> None:
        """Remember which broker is relayed to, while the claim holds.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        values = {"broker_id": broker_id, "broker": self._broker}
        change = update(relays).where(self._has_claim()).values(values)
        # Whoever shares a server that has lost its id has the new one too.
        also = (
            update(relays)
            .where(
                self._shares_broker(),
                relays.c.broker == self._broker,
                self._still_has_claim(),
            )
            .values(values)
        )
        self._changed("remember the relay's broker", change, also)
        self.broker_id = broker_id

    # ------------------------------------------------------------ inside

    def _is_mine(self) -> Any:
        return relays.c.application == self._application

    def _has_claim(self) -> Any:
        return and_(self._is_mine(), relays.c.token == self.token)

    def _shares_broker(self) -> Any:
        return and_(relays.c.broker_id == self.broker_id, relays.c.broker_id != "")

    def _still_has_claim(self) -> Any:
        """Return the condition on other applications' rows that the claim on the own one holds."""
        own = relays.alias("own")
        return (
            select(own.c.token)
            .where(own.c.application == self._application, own.c.token == self.token)
            .exists()
        )

    def _first(self, what: str, *columns: Any) -> Any:
        store = self._store
        rows = store._rows(select(*columns).where(self._is_mine()), what, store._primary_reader)
        return rows[0] if rows else None

    def _changed(self, what: str, *changes: Any) -> Any:
        """Change rows; returns the application's own afterwards, by which success is told.

        Each statement commits by itself: a process that is frozen between two has nothing locked.
        """
        store = self._store
        own = select(relays.c.token, relays.c.broker_id).where(self._is_mine())

        def change() -> Any:
            with self._engine.connect() as connection:
                for statement in changes:
                    connection.execute(statement)
                return connection.execute(own).first()

        # What is repeated does the same: the claim's token is in it.
        return store.attempt_anew(what, change)

    def _make_row(self) -> None:
        store = self._store
        old = store._rows(
            select(checkpoints.c.position).where(checkpoints.c.name == OLD_CHECKPOINT),
            "look up the relay's checkpoint",
            store._primary_reader,
        )
        row = {
            "application": self._application,
            "broker_id": "",
            "broker": "",
            "leader": "",
            "token": _NOBODY,
            "lease_until_ms": 0,
            "position": old[0][0] if old else None,
            "event_id": "",
        }

        def make(connection: Connection) -> None:
            # Another worker may have been quicker.
            if connection.execute(select(relays.c.token).where(self._is_mine())).first() is None:
                connection.execute(insert(relays).values(row))

        store.transact("make the relay's row", make)


def _me() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
