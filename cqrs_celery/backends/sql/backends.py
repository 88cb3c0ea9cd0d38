"""Find the SQL engines. Each is a folder of `backends` with a module `sql_backend`.

That module has one value, `BACKEND`. It is imported for an engine's names alone, as the settings
need them, so it imports neither SQLAlchemy nor a driver outside of its methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

from ...errors import InvalidSetting
from .. import __path__ as backends_path

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.engine import URL

    from ...store.ports import EventStore
    from .column_types import ColumnTypes
    from .migrations.variants import MigrationVariants

#: The module by which a folder is known to be a SQL engine's.
MODULE: Final = "sql_backend"


class Driver(NamedTuple):
    """A driver: its name in a URL, the module that it is, and how to install it."""

    name: str
    module: str
    install: str


class SqlBackend:
    """What the package must know of a SQL engine to open a store in it, and to make its tables.

    What an open store does differently is in its rules; see `rules`. What is here holds for most;
    an engine replaces the others.

    Attributes:
        name: the engine's name in SQLAlchemy, with which its URLs begin.
        aliases: other words with which a URL may begin.
        example: a URL, as errors show what is accepted.
        drivers: its drivers, the preferred one first.
    """

    name: ClassVar[str]
    aliases: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str]
    drivers: ClassVar[tuple[Driver, ...]]

    def store(self) -> Callable[..., EventStore]:
        """Return the class of its stores, a `SqlEventStore`."""
        raise NotImplementedError

    def migrations(self) -> MigrationVariants:
        """Return what it does its own way when the tables are made."""
        raise NotImplementedError

    def column_types(self) -> ColumnTypes:
        """Return the types of columns that it does not share with the others."""
        from .column_types import ColumnTypes

        return ColumnTypes()

    def driver_refusal(self, driver: str) -> str | None:
        """Return why a driver can't be used that SQLAlchemy knows; None if nothing is known of it.

        Args:
            driver: its name in a URL.
        """
        return None

    def check_url(self, url: URL) -> None:
        """Check that a URL names a database in which a store can be.

        Raises:
            InvalidSetting: it does not.
        """

    def engine_options(self, url: URL) -> dict[str, Any]:
        """Return the options of SQLAlchemy's engine for a URL, as `connect_args`.

        Args:
            url: has its driver; its own options go before.

        Raises:
            ImportError: the driver can't be loaded.
        """
        return {}

    def missing(self, url: URL) -> str | None:
        """Return why there is no such database, as far as that is known without connecting."""
        return None

    def prepare(self, engine: Engine) -> None:
        """Set up an engine that was made for a store."""


def sql_backends() -> Sequence[SqlBackend]:
    """Return all engines, in the order of their folders' names."""
    return _found_in(tuple(backends_path))


def backend_named(word: str) -> SqlBackend | None:
    """Return the engine for which a URL begins with a word; None if there is none."""
    return next((one for one in sql_backends() if word in (one.name, *one.aliases)), None)


def backend_of(dialect: str) -> SqlBackend:
    """Return the engine that SQLAlchemy calls by a name.

    Raises:
        InvalidSetting: no store can be there.
    """
    for one in sql_backends():
        if one.name == dialect:
            return one
    accepted = ", ".join(one.name for one in sql_backends())
    raise InvalidSetting(
        f"the engine is for {dialect}; an event store can be in {accepted}",
        setting="engine",
        accepted=accepted,
    )


@cache
def _found_in(path: tuple[str, ...]) -> Sequence[SqlBackend]:
    parent = __package__.rpartition(".")[0]
    names = sorted(
        package.name
        for folder in path
        for package in iter_modules([folder])
        if package.ispkg
        and any(module.name == MODULE for module in iter_modules([str(Path(folder, package.name))]))
    )
    return [import_module(f"{parent}.{name}.{MODULE}").BACKEND for name in names]
