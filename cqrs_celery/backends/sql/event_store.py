"""Keep events in a SQL database: the part that all engines share.

The store is four layers, each a module: `access` reaches the database, `reading` and `appending`
are on top of it, and here is what else a store has. What differs between engines is in `rules`.

Positions increase in the order in which events may be read; an append that was rolled back may
leave a number out. Delivery is the relay's.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Engine, select

from ...errors import InvalidSetting, SchemaError
from ...store.capabilities import Capabilities
from ...store.refusals import check_text
from ...store.relay_ports import LeaseCheck
from .appending import SqlAppending
from .engine import where
from .leading import Leadership
from .outbox import SqlOutbox
from .snapshot_store import SqlSnapshotStore
from .tables import commands, identity
from .transaction import SqlTransaction

#: Expired commands that one transaction deletes, at most. From 5,000 on, SQL Server takes a lock on
#: the whole table in place of locks on rows.
FORGET_ROWS: Final = 4_000

#: Seconds for which that may take, also where all else is given less.
PURGE_S: Final = 30.0


class SqlEventStore(SqlAppending):
    """An EventStore in a SQL database. Safe for threads, and for processes forked from this one.

    Args:
        engine: connects to the database; it may be the application's own.
        read_engine: connects to a replica, for reading; what it does not have yet is read from the
            database itself where it matters.
        lease_check: tells whether a lease is held; asked right before a commit under one. The
            database can't ask the queue by itself, so a lease that ends between the answer and the
            commit goes unnoticed: then the streams' versions decide.
        is_own_engine: the engine was made for this store alone, so its connections may be kept.

    Attributes:
        engine: as given.
        where: names the database in errors, without credentials.
        lease_check: as given; the application sets it where its broker can tell.
        on_commit: called after each commit with events, to wake the relay.
        outbox: what the relay needs.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        read_engine: Engine | None = None,
        lease_check: LeaseCheck | None = None,
        is_own_engine: bool = False,
    ) -> None:
        super().__init__(
            engine,
            read_engine=read_engine,
            lease_check=lease_check,
            is_own_engine=is_own_engine,
        )
        self.outbox = SqlOutbox(self)

    @property
    def capabilities(self) -> Capabilities:
        """What the store can do in addition to the port."""
        return Capabilities(
            relayed=self,
            transactions=self,
            snapshots=self,
            histories=self,
            replica=self,
            tables=self,
            checks_versions=True,
            where=self.where,
        )

    def forget_known(self) -> None:
        """Forget what is known of the database, which may be another one now, or an older copy."""
        self.outbox.forget()

    def begin(self) -> SqlTransaction:
        """Begin a transaction for rows of the application's own and the append that follows them.

        Raises:
            StoreUnavailable: the server does not answer.
        """
        return SqlTransaction(self)

    def leadership(self, application: str, *, broker: str) -> Leadership:
        """Return what makes a process's relay the active one of an application.

        Args:
            application: whose relay.
            broker: names what it relays to, without credentials.

        Raises:
            InvalidText: the application's name can't be kept by every store.
        """
        check_text(application, "the application's name")
        return Leadership(self, application, broker=broker)

    def forget_expired_commands(self) -> int:
        """Delete commands that have expired, `FORGET_ROWS` at most; the relay does this.

        It is one statement, and passes over rows that another transaction has locked: it waits for
        none, and nobody for it but while the database runs it.

        Returns:
            The number of those deleted. Call it again until that is 0; then what is left, somebody
            else is deleting, or has locked.

        Raises:
            StoreUnavailable: the server does not answer.
            TransactionConflict: other transactions were in its way again and again.
        """
        # Looked at twice: one of them may be recorded anew before its row is locked.
        is_expired = commands.c.expires_at <= self.rules.to_time(datetime.now(UTC))
        first = (
            select(commands.c.command_id)
            .where(is_expired)
            .order_by(commands.c.expires_at)
            .limit(FORGET_ROWS)
        )
        statement = self.rules.delete_unlocked(first, is_expired)
        with self.limited(PURGE_S):
            return self.run_each(
                "delete expired commands",
                lambda connection: self.rules.changed(connection, statement),
            )

    def check_replica(self) -> None:
        """Check that the replica, if there is one, is one of this database.

        Raises:
            InvalidSetting: it is another database, or one that has no tables of a store.
            SchemaError: the tables of this database are missing.
            StoreUnavailable: a server does not answer.
        """
        if not self.has_replica:
            return
        own = self.outbox.store_id
        try:
            statement = select(identity.c.store_id)
            rows = self.rows(statement, "look up the replica's id", self.reader)
        except SchemaError as error:
            raise self._no_replica("it has no tables of an event store", own) from error
        found = str(rows[0][0]) if rows else "none"
        if found != own:
            raise self._no_replica(f"its store's id is {found}", own)

    def _no_replica(self, found: str, own: str) -> InvalidSetting:
        return InvalidSetting(
            f"the read URL leads to {where(self.reader.url)}, which is no replica of {self.where}:"
            f" {found}, expected the id {own}. Correct cqrs_event_store_read_url, or remove it.",
            setting="cqrs_event_store_read_url",
            accepted="the URL of a replica of the event store's database",
        )

    def snapshots(self) -> SqlSnapshotStore:
        """Return the store of the streams' snapshots, in the same database."""
        return SqlSnapshotStore(self)
