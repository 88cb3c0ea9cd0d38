"""Write rows of the application's own and events in one transaction."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from ...errors import StoreError, StoreUnavailable, TransactionConflict
from ...store.events import CommandRecord, Committed, Lease, StreamAppend
from ...store.refusals import check_command, command_repeated
from .appending import SqlAppending
from .batch import Batch, CommandRefused, VersionRefused, beaten
from .connecting import connect, discard, watch
from .failures import AlreadyThere, TransactionBeaten


class SqlTransaction:
    """An open transaction, as `SqlEventStore.begin` makes it; one append, or `commit`, ends it.

    Attributes:
        connection: SQLAlchemy's, for statements of one's own. Committing it is not for its user.
            Where the server is away, a statement raises StoreUnavailable, and any other error of
            SQLAlchemy's otherwise.
    """

    def __init__(self, store: SqlAppending) -> None:
        self._store = store
        with store.reach("begin a transaction"):
            self.connection: Connection = watch(connect(store), store)
            self.connection.begin()
            store.rules.on_begin(self.connection)

    def append(
        self,
        appends: Sequence[StreamAppend],
        *,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
    ) -> Committed:
        """Append events, and commit them with the rows beside them; see `EventStore.append`.

        Without any events, only the rows are committed, and the streams' versions are checked.

        If the same append has committed before (its reply was lost), its rows have too, so this
        transaction is rolled back. After an error it is, as well.

        Raises:
            TransactionConflict: the database ended the transaction for the sake of another one.
                Nothing is repeated here: the rows beside it are not ours to write.
        """
        store = self._store
        try:
            batch = Batch.of(appends, may_only_check=True)
            check_command(command)
            command = command or batch.as_command
            with store.reach(str(batch)):
                committed = self._write(batch, command)
                store.check_lease(lease)
                self._end()
            store.committed(batch)
            return committed
        except (VersionRefused, CommandRefused, AlreadyThere) as refusal:
            self.rollback()
            known = store.settle(batch, command, refusal, may_repeat=True)
            if known is None:
                raise beaten(batch, refusal) from refusal
            return known
        except TransactionBeaten as reason:
            raise beaten(batch, reason) from reason
        except StoreUnavailable:
            self._discard()
            raise
        finally:
            self.rollback()

    def commit(self, *, command: CommandRecord | None = None, lease: Lease | None = None) -> None:
        """Commit the rows alone, and record the command as carried out at position 0.

        Raises:
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            StoreUnavailable: the server does not answer.
        """
        store = self._store
        try:
            check_command(command)
            with store.reach("commit"):
                if command is not None:
                    self._remember(command)
                store.check_lease(lease)
                self._end()
        except (CommandRefused, AlreadyThere, TransactionBeaten) as refusal:
            self.rollback()
            if command is not None and not isinstance(refusal, TransactionBeaten):
                found = store.find_command(command.command_id)
                if found is not None:
                    raise command_repeated(command.command_id, found) from refusal
            raise TransactionConflict(
                "could not commit: the database ended the transaction for the sake of another one"
                f" ({refusal}). Nothing was written. Repeat the command.",
                stream="",
                expected=0,
                found=0,
            ) from refusal
        except StoreUnavailable:
            self._discard()
            raise
        finally:
            self.rollback()

    def _write(self, batch: Batch, command: CommandRecord | None) -> Committed:
        return write_or_check(self._store, self.connection, batch, command)

    def _remember(self, command: CommandRecord) -> None:
        self._store.remember(self.connection, command, 0)

    def _end(self) -> None:
        self.connection.commit()
        self._store.check_kept(self.connection)

    def rollback(self) -> None:
        """Give the connection back; what was not committed is not written. May be called again."""
        try:
            with self._store.reach("roll back"):
                self.connection.close()
        except (StoreError, TransactionBeaten):
            # The connection is lost, and with it the transaction.
            self._discard()

    def _discard(self) -> None:
        """Close the connection for good: its server is away."""
        discard(self.connection)


def write_or_check(
    store: SqlAppending, connection: Connection, batch: Batch, command: CommandRecord | None
) -> Committed:
    """Append in an open transaction, or only check the versions of a batch without events.

    Raises:
        VersionRefused: a stream is at another version.
        CommandRefused: the command has committed before.
        Exception: the driver's.
    """
    write = store.write if batch.events else store.check_versions
    return write(connection, batch, command)
