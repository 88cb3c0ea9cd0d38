"""Write Django's rows and events in one transaction of Django's."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from typing import Any

from django.db import Error as DjangoError
from django.db import connections, transaction

from ...errors import StoreError, StoreUnavailable
from ...store.events import CommandRecord, Committed
from ..sql.appending import SqlAppending
from ..sql.batch import Batch
from ..sql.connecting import meaning_of_statement
from ..sql.transaction import SqlTransaction, write_or_check
from .connections import is_in_transaction


class _Undone(Exception):
    """An error by which Django rolls back."""


class DjangoTransaction(SqlTransaction):
    """An open transaction of Django's; one append, or `commit`, ends it.

    Where another one is around it, that decides in the end. If it is not to enclose a handler, it
    is that one: then its end ends nothing.

    Args:
        store: the store that begins it.
        inside: that store on the thread's connection of Django's.
        alias: the database's.
        is_enclosing: a handler is called in it.

    Attributes:
        connection: Django's, as in `django.db.connections`.
    """

    def __init__(
        self, store: SqlAppending, inside: SqlAppending, alias: str, *, is_enclosing: bool
    ) -> None:
        self._store = store
        self._inside = inside
        self._alias = alias
        self.connection: Any = connections[alias]
        self._atomic: Any = None
        self._is_lost = False
        is_outermost = not is_in_transaction(alias)
        if is_enclosing or is_outermost:
            if is_outermost:
                self._replace_lost()
            atomic = ExitStack()
            with store.reach("begin a transaction"):
                atomic.enter_context(transaction.atomic(using=alias))
            atomic.enter_context(self.connection.execute_wrapper(self._watched))
            self._atomic = atomic

    def _replace_lost(self) -> None:
        """Close a connection that was kept from earlier, if the server serves it no more.

        Django opens another one when it needs it.
        """
        kept = self.connection.connection
        if kept is not None and not self._store.serves(kept):
            self.connection.close()

    def _watched(self, execute: Any, *arguments: Any) -> Any:
        """Run a statement of Django's; its error becomes ours if another try may succeed."""
        try:
            return execute(*arguments)
        except DjangoError as error:
            reason = error.__cause__
            meaning = None if reason is None else meaning_of_statement(self._store, reason)
            if meaning is None:
                raise
            self._is_lost = self._is_lost or isinstance(meaning, StoreUnavailable)
            raise meaning from error

    def _discard(self) -> None:
        self._is_lost = True

    def _write(self, batch: Batch, command: CommandRecord | None) -> Committed:
        # Where the transaction is another's, a refusal shall cost no more than the append.
        around = nullcontext() if self._atomic else transaction.atomic(using=self._alias)
        with around, self._inside.engine.connect() as connection:
            return write_or_check(self._inside, connection, batch, command)

    def _remember(self, command: CommandRecord) -> None:
        around = nullcontext() if self._atomic else transaction.atomic(using=self._alias)
        with around, self._inside.engine.connect() as connection:
            self._inside.remember(connection, command, 0)

    def _end(self) -> None:
        if self._atomic is None:
            return
        if self.connection.needs_rollback:
            raise StoreError(
                f"could not commit in {self._store.where}: Django has marked the transaction to be"
                " rolled back, after an error in it that was caught, or by set_rollback. Nothing"
                " was written. Catch database errors outside a transaction.atomic of their own."
            )
        atomic, self._atomic = self._atomic, None
        atomic.__exit__(None, None, None)

    def rollback(self) -> None:
        """Roll back what was not committed. May be called again."""
        if self._atomic is not None:
            atomic, self._atomic = self._atomic, None
            atomic.__exit__(_Undone, _Undone(), None)
        if self._is_lost and not is_in_transaction(self._alias):
            self.connection.close()
