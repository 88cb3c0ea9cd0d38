"""Leadership among relays: one of several is the active one, by a lease in the database.

    leadership = store.leadership("shop", broker="redis://…")
    if leadership.claim(broker_id, next_number):
        while leadership.holds():
            …

The row of an application says who leads, until when by the database's own clock, and for which
broker. A leader that is frozen, or cut off, does not renew its lease, and is replaced when that has
ended; each claim has a token of its own, by which what the former leader still does is told from
what the present one does. Nothing hangs on a connection, so a pooler may stand in between.

Of the applications that have the same broker, one leads for all: its relay gives that broker
everything. Two that claim it at the same moment both see the other one afterwards, and withdraw.
How far everything is handled is remembered in all of their rows, by one statement. An application
whose broker has lost its data, or is another one than before, has something to give again, which
nobody else knows of: it leads, also in place of one that leads already.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import or_, select, update

from ...store.events import Place
from ...store.relay_ports import Led
from .access import SqlAccess
from .relay_rows import NOBODY, RelayRows
from .tables import relays

#: Seconds for which a leader leads without renewing.
LEASE_S: Final = 4.0

#: Seconds after which it renews; in between it only looks.
RENEW_S: Final = 1.0


def _no_number() -> int:
    return 0


class Leadership:
    """One process's claim to be the active relay of an application; not for several threads.

    Args:
        store: has the row.
        application: whose relays they are.
        broker: names what they relay to in messages, without credentials.
        lease_s: seconds for which a claim holds without being renewed.

    Attributes:
        rows: the rows that the lease is in.
        token: tells the present claim from all others; empty without one.
        broker_id: the broker that is relayed to; empty if it has no id.
        former_broker_id: the one before it, if what that had is to be given again; empty if not.
        is_first: whether no relay of this application has been active before.
        seen: who led when `claim` looked last; None if nobody ever had.
    """

    def __init__(
        self, store: SqlAccess, application: str, *, broker: str, lease_s: float = LEASE_S
    ) -> None:
        self._store = store
        self._application = application
        self._broker = broker
        lease_ms = int(lease_s * 1000)
        self.rows = RelayRows(store, application, broker=broker, lease_ms=lease_ms)
        self._renewed_at = 0.0
        self.token = NOBODY
        self.broker_id = ""
        self.former_broker_id = ""
        self.is_first = False
        self.seen: Led | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._application} in {self._store.where}>"

    # ------------------------------------------------------------ lease

    def led(self) -> Led | None:
        """Return who leads, or led last; None if nobody ever did.

        Raises:
            SchemaError: the tables are missing or of another version.
            StoreUnavailable: the server does not answer.
        """
        row = self.rows.first(
            "look up the active relay",
            relays.c.leader,
            relays.c.broker_id,
            relays.c.broker,
            relays.c.lease_until_ms,
            self._store.rules.now_ms().label("now_ms"),
        )
        if row is None:
            return None
        is_live = self.rows.is_until(row.lease_until_ms, row.now_ms)
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
            ~self.rows.is_mine(),
            relays.c.lease_until_ms > store.rules.now_ms(),
        )
        rows = store.rows(live, "look up the active relay", store.primary_reader)
        return (str(rows[0][0]), str(rows[0][1])) if rows else None

    def claim(self, broker_id: str, next_number: Callable[[], int] = _no_number) -> bool:
        """Become the active relay if there is none, with a lease from now on.

        Args:
            broker_id: the broker that is relayed to; empty if it has no id.
            next_number: returns a number that is higher than that of each claim before, by which
                the broker tells which of two claims came later. Asked for only if nobody leads.

        Returns:
            Whether this one is it now.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        led = self.seen = self.led()
        if led is None:
            self.rows.make()
        elif led.is_live:
            return False
        known = "" if led is None else led.broker_id
        is_new = led is None or not (led.broker_id or led.leader)
        is_moved = known != broker_id and not is_new
        # A broker that has lost its data concerns all that have it: who is alive sees to it.
        rivals = self.rows.live(known, self._broker) if is_moved else self.rows.live(broker_id)
        if self.rows.is_there(rivals):
            if is_new:
                self._join(broker_id)
            return False
        claimed_at = time.monotonic()
        token = f"{next_number()}.{secrets.token_hex(8)}"
        changes = [self.rows.taking(known, broker_id, rivals, token)]
        if is_moved:
            changes.append(self.rows.ending_others(broker_id, token))
        row = self.rows.changed("become the active relay", *changes)
        if row is None or row.token != token:
            return False
        self.token = token
        self.broker_id, self._renewed_at, self.is_first = broker_id, claimed_at, is_new
        if is_moved:
            self.former_broker_id = known
        if self.rows.is_there(self.rows.live(broker_id)):
            # Another one claimed at the same moment, and may not have seen this one.
            self.release()
            return False
        return True

    def _join(self, broker_id: str) -> None:
        """Note which broker this application has, while another one's relay serves it.

        What the row may have from before is of the time when all had one checkpoint.
        """
        if broker_id:
            change = update(relays).where(self.rows.is_mine(), relays.c.broker_id == "")
            values = {"broker_id": broker_id, "broker": self._broker, "position": None}
            self.rows.changed("remember the relay's broker", change.values(values))

    def holds(self) -> bool:
        """Return whether the claim still holds; the lease is renewed now and then.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        now = time.monotonic()
        what = "renew the active relay's lease"
        if now - self._renewed_at < RENEW_S:
            row = self.rows.first(what, relays.c.token)
            return row is not None and row.token == self.token
        now_ms = self._store.rules.now_ms()
        # One that has ended stays ended: another application may lead for this one by now.
        renewal = update(relays).where(
            self.rows.has_claim(self.token), relays.c.lease_until_ms > now_ms
        )
        row = self.rows.changed(what, renewal.values(lease_until_ms=now_ms + self.rows.lease_ms))
        self._renewed_at = now
        return (
            row is not None
            and row.token == self.token
            and self.rows.is_until(row.lease_until_ms, row.now_ms)
        )

    def release(self) -> None:
        """Let another one lead at once; a second time does nothing.

        Raises:
            StoreUnavailable: the server does not answer; the lease ends by itself.
        """
        if self.token:
            change = update(relays).where(self.rows.has_claim(self.token)).values(lease_until_ms=0)
            self.rows.changed("give up the active relay's lease", change)
            self.token = NOBODY

    # ------------------------------------------------------------ what belongs to the claim

    def checkpoint(self) -> Place | None:
        """Return up to where all is known to be handled, or sent; None if no relay has ever run.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        what = "look up the relay's checkpoint"
        row = self.rows.first(what, relays.c.position, relays.c.event_id)
        return None if row is None or row.position is None else Place(row.position, row.event_id)

    def checkpoints(self) -> list[Place]:
        """Return the checkpoints of this application and of those with its broker, lowest first.

        They differ only where one of them has something to be given again.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        store = self._store
        found = (
            select(relays.c.position, relays.c.event_id)
            .where(
                or_(self.rows.is_mine(), self.rows.shares_broker(self.broker_id)),
                relays.c.position.is_not(None),
            )
            .order_by(relays.c.position)
        )
        rows = store.rows(found, "look up the relay's checkpoints", store.primary_reader)
        return [Place(row.position, row.event_id) for row in rows]

    def save_checkpoint(self, place: Place) -> bool:
        """Remember the checkpoint, while the claim holds and the store has the event there.

        Applications that this one relays for, since they have the same broker, get the same, in the
        same statement.

        Returns:
            Whether it was written.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        change = update(relays).where(
            or_(self.rows.is_mine(), self.rows.shares_broker(self.broker_id)),
            self.rows.still_has_claim(self.token),
            self.rows.has_event(place),
        )
        row = self.rows.changed(
            "save the relay's checkpoint",
            change.values(position=place.position, event_id=place.event_id),
        )
        return (
            row is not None
            and row.token == self.token
            and (row.position, row.event_id) == (place.position, place.event_id)
        )

    def note_new_broker_id(self) -> None:
        """Note the broker's new id for the applications that had its former one, by the same name.

        Only a broker that has lost its data has another id under the same name.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        change = update(relays).where(
            relays.c.broker_id == self.former_broker_id,
            relays.c.broker_id != "",
            relays.c.broker == self._broker,
            self.rows.still_has_claim(self.token),
        )
        self.rows.changed("remember the relay's broker", change.values(broker_id=self.broker_id))
