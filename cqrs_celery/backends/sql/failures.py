"""Tell what a driver's error means, and raise ours from it.

An engine's folder says which codes its database uses; here is what follows from each meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, Protocol

from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ...errors import SchemaError, StoreError, StoreUnavailable


class Failure(Enum):
    """What a driver's error means."""

    #: The server does not answer, takes no more, or is not the one that writes (any more).
    AWAY = auto()
    #: A table, a column or a function is not there.
    SCHEMA = auto()
    #: The database ended the transaction for the sake of another one.
    BEATEN = auto()
    #: Something is there already that may be there once.
    TAKEN = auto()
    #: Anything else.
    OTHER = auto()


class TransactionBeaten(Exception):
    """The database aborted a transaction in favour of another one. It may be repeated."""


class AlreadyThere(Exception):
    """An event, a stream or a command was there already."""


class ErrorRules(Protocol):
    """What an engine's errors mean."""

    def failure(self, error: BaseException) -> Failure:
        """Return what a driver's error means."""

    def is_misconfigured(self, error: BaseException) -> bool:
        """Return whether the URL is to blame for the server's being away."""

    def is_away(self, error: BaseException) -> bool:
        """Return whether a statement of the application's own failed because the server is away."""

    def is_deadlock(self, error: BaseException) -> bool:
        """Return whether the database ended the transaction in the application's statement."""


class Database(Protocol):
    """A database that is reached, by connections that may be lost."""

    where: str

    @property
    def rules(self) -> ErrorRules:
        """What its errors mean."""

    def forget_lost(self) -> None:
        """Replace the connections that may be lost, as one of them is."""

    def forget_lost_replica(self) -> None:
        """Replace the connections to the replica; those to the primary are not affected."""


def driver_error(error: BaseException) -> BaseException:
    """Return the driver's own error, which SQLAlchemy may have wrapped."""
    return error.orig if isinstance(error, DBAPIError) and error.orig is not None else error


@contextmanager
def reaching(
    database: Database, what: str, drivers: type[Exception], *, replica: str | None = None
) -> Iterator[None]:
    """Turn the errors of a driver, and of SQLAlchemy, into ours.

    Args:
        database: knows them, and whose connections are thrown away.
        what: is being done: "read Order-42".
        drivers: the base of the driver's errors.
        replica: names the replica in errors, if that is asked; None for the primary.

    Raises:
        StoreUnavailable: the server does not answer.
        SchemaError: the tables are not there, or not this version's.
        TransactionBeaten: to be repeated.
        AlreadyThere: to be looked at.
        StoreError: anything else that the database refuses.
    """
    named = _named(database, replica)
    try:
        yield
    except PoolTimeoutError as error:
        raise StoreUnavailable(
            f"could not {what}: no connection to {named} came free in time. Let fewer"
            " threads share the store, or give it an engine with a larger pool."
        ) from error
    except (SQLAlchemyError, drivers) as error:
        meaning = meaning_of(database, what, driver_error(error), replica=replica)
        if isinstance(meaning, StoreUnavailable):
            if replica is None:
                database.forget_lost()
            else:
                database.forget_lost_replica()
        raise meaning from error


def _named(database: Database, replica: str | None) -> str:
    return database.where if replica is None else f"the replica {replica}"


def meaning_of(
    database: Database, what: str, error: BaseException, *, replica: str | None = None
) -> Exception:
    """Return the error of ours that a driver's error means; see `reaching`."""
    failure, said = database.rules.failure(error), driver_text(error)
    named = _named(database, replica)
    if failure is Failure.BEATEN:
        return TransactionBeaten(said)
    if failure is Failure.TAKEN:
        return AlreadyThere(said)
    if failure is Failure.AWAY and database.rules.is_misconfigured(error):
        return StoreUnavailable(
            f"could not {what}: {named} can't be opened ({_refusal(error)}). Correct its URL, or"
            " make what that names.",
            is_misconfigured=True,
        )
    if failure is Failure.AWAY:
        return StoreUnavailable(
            f"could not {what}: {named} does not answer, or can't do it now ({said}). Start"
            " it, or correct its URL"
            + (", which must lead to the server that takes writes." if replica is None else ".")
        )
    if failure is Failure.SCHEMA:
        return schema_missing(named, f"could not {what} ({said})")
    return StoreError(f"could not {what}: {named} refused it ({said})")


def schema_missing(where: str, found: str) -> SchemaError:
    """Return the error for tables that are not there, or not this version's."""
    return SchemaError(
        f"{found}: the event store's tables in {where} are missing or of another version. Create or"
        " upgrade them: celery -A <app> cqrs schema create"
    )


def driver_text(error: Any) -> str:
    """Return the first line of a driver's error; the others repeat the statement."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason")


def _refusal(error: BaseException) -> str:
    """Return the line with which a server has refused a connection; others may not have answered.

    A host has several addresses, and a URL several hosts: PostgreSQL's driver has a line for each.
    """
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if "FATAL" in line), driver_text(error))
