"""Get connections on which a transaction can begin, and discard those on which none can.

A connection may have lain in a pool since before its server was restarted, or became a replica:
then every write on it fails, for ever. Reading and appending find that out by trying, and repeat
what they did. A transaction in which the application writes first can't be repeated here, so its
connection is asked before: one round trip, which an append alone does not pay.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext

from ...errors import StoreUnavailable, TransactionConflict
from .failures import Database, driver_text, meaning_of

#: What was tried, in the error of a statement of the application's own.
STATEMENT = "run a statement in the transaction"

#: The option of a connection on which the application's own statements run, in a transaction of
#: the store that it names.
_STORE = "cqrs_store"


class Connectable(Database, Protocol):
    """A database to which transactions are opened, on an engine."""

    engine: Engine

    def serves(self, connection: Any) -> bool:
        """Return whether the server serves a connection of the driver's, and lets it write."""


def connect(store: Connectable) -> Connection:
    """Return a connection that the server serves; one that it does not is replaced, once.

    Raises:
        Exception: the driver's, or SQLAlchemy's: there is no server, or no connection came free.
    """
    connection = store.engine.connect()
    if store.serves(connection.connection.dbapi_connection):
        return connection
    discard(connection)
    store.forget_lost()
    return store.engine.connect()


def age(engine: Engine) -> None:
    """Let an engine make each connection of its pool anew, before its next use.

    Those in use go on, unlike after `Engine.dispose`, which leaves them in a pool that is nobody's:
    given back there, they stay open.
    """
    pool: Any = engine.pool
    # So does SQLAlchemy itself, when a connection turns out to be lost.
    pool._invalidate_time = time.time()


def discard(connection: Connection) -> None:
    """Close a connection for good instead of returning it to its pool."""
    if not connection.closed:
        connection.invalidate()
        connection.close()


def watch(connection: Connection, store: Connectable) -> Connection:
    """Turn errors of the application's statements into ours, if the statements are not to blame.

    That is, if the server is away, or has ended the transaction for the sake of another one. All
    others stay SQLAlchemy's. A connection to a server that is away is not used again.
    """
    _listen_to(store.engine)
    return connection.execution_options(**{_STORE: store})


def _listen_to(engine: Engine) -> None:
    if not event.contains(engine, "handle_error", _translate):
        event.listen(engine, "handle_error", _translate)


def _translate(context: ExceptionContext) -> Exception | None:
    connection: Any = context.connection
    store = None if connection is None else connection.get_execution_options().get(_STORE)
    meaning = None if store is None else meaning_of_statement(store, context.original_exception)
    if isinstance(meaning, StoreUnavailable):
        # SQLAlchemy then throws away this connection, and all that are as old.
        context.is_disconnect = True
    return meaning


def meaning_of_statement(store: Database, error: BaseException) -> Exception | None:
    """Return the error of ours that the failure of an application's own statement means.

    Returns:
        StoreUnavailable or TransactionConflict, by which a handler is tried again; None if the
        statement is to blame.
    """
    if store.rules.is_away(error):
        return meaning_of(store, STATEMENT, error)
    if store.rules.is_deadlock(error):
        return TransactionConflict(
            f"could not {STATEMENT}: {store.where} ended it for the sake of another one"
            f" ({driver_text(error)}). Nothing was written. Repeat the command.",
            stream="",
            expected=0,
            found=0,
        )
    return None
