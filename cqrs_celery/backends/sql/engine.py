"""Make a SQLAlchemy engine from a URL: complete it, find its driver, keep its password secret."""

from __future__ import annotations

import importlib.util
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...errors import InvalidSetting, MissingDependency
from ...extras import how_to_install
from ..postgresql.driver import tcp_options
from ..sqlite.forking import ForkSafeConnection

#: Connections that a process keeps open, at most.
POOL_SIZE: Final = 20

#: Seconds to wait for one of them.
POOL_TIMEOUT_S: Final = 30.0

#: Seconds that SQLite waits for another process to end its write.
SQLITE_BUSY_S: Final = 30.0


class Driver(NamedTuple):
    """A driver: its name in a URL, the module that it is, and how to install it."""

    name: str
    module: str
    install: str


#: The drivers of each engine, the preferred one first.
DRIVERS: Final = {
    "postgresql": (
        Driver("psycopg2", "psycopg2", how_to_install("postgresql")),
        Driver("psycopg", "psycopg", "pip install 'psycopg[binary]'"),
    ),
    "mssql": (
        Driver(
            "pyodbc",
            "pyodbc",
            f"{how_to_install('sqlserver', 'mssql-python')}; the second of them brings Microsoft's"
            " ODBC driver as a file. Besides, the system's libodbc (on Debian, as root: apt-get"
            " install unixodbc)",
        ),
    ),
    "sqlite": (Driver("pysqlite", "sqlite3", "a Python that was built with SQLite"),),
}

#: Other words for the engines.
_ALIASES: Final = {"postgres": "postgresql", "sqlserver": "mssql"}

ACCEPTED: Final = "postgresql://…, mssql+pyodbc://…, sqlite:///file, memory://"


def parse_url(text: str, *, setting: str) -> URL:
    """Return a URL with its driver.

    Args:
        text: the URL; without a driver it gets the one that is installed.
        setting: where it comes from, for errors.

    Raises:
        InvalidSetting: it is no URL of an engine that there is. The URL is not repeated: its
            password may stand anywhere in it.
        MissingDependency: its driver, or every driver of its engine, is not installed.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise _invalid(setting, "it can't be read as a URL") from None
    backend, _, driver = url.drivername.partition("+")
    backend = _ALIASES.get(backend, backend)
    if backend not in DRIVERS:
        raise _invalid(setting, f"it begins with {backend}://")
    known = {one.name: one for one in DRIVERS[backend]}
    if (refusal := driver_refusal(backend, driver)) is not None:
        raise _invalid(setting, refusal)
    if driver and driver not in known:
        raise _invalid(setting, f"its driver is {driver}; known are {', '.join(known)}")
    wanted = [known[driver]] if driver else list(known.values())
    for one in wanted:
        if importlib.util.find_spec(one.module) is not None:
            return url.set(drivername=f"{backend}+{one.name}")
    raise MissingDependency(
        f"no driver for {backend} is installed: {' or '.join(one.module for one in wanted)} was"
        f" looked for. Install it: {wanted[0].install}"
    )


def driver_refusal(backend: str, driver: str) -> str | None:
    """Return why a driver can't be used that SQLAlchemy knows; None if nothing is known of it.

    Args:
        backend: the engine, as mssql.
        driver: the driver, as pyodbc.
    """
    if (backend, driver) == ("mssql", "mssqlpython"):
        return (
            "its driver is mssql-python, whose errors carry no number, so that a repeated append, a"
            " deadlock and a server that is away can't be told from other errors; use mssql+pyodbc,"
            " whose option `driver` can name the ODBC driver that mssql-python has brought"
        )
    return None


def _invalid(setting: str, found: str) -> InvalidSetting:
    return InvalidSetting(
        f"{setting} names no event store: {found}; accepted: {ACCEPTED}",
        setting=setting,
        accepted=ACCEPTED,
    )


def make_engine(url: URL) -> Engine:
    """Return an engine that has not connected yet, and shows no parameters in its errors.

    Raises:
        MissingDependency: the driver is there but can't be loaded.
        InvalidSetting: the URL's options don't fit the driver.
    """
    options: dict[str, Any] = {"hide_parameters": True}
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        options["connect_args"] = {"timeout": SQLITE_BUSY_S, "factory": ForkSafeConnection}
    try:
        if url.get_backend_name() == "postgresql":
            options["connect_args"] = tcp_options(url)
    except ImportError as error:
        raise _not_loaded(url, error) from error
    if url.get_driver_name() == "psycopg" and "prepare_threshold" not in url.query:
        # The names of what it prepares by itself are the server's, which a pooler may change.
        options["connect_args"]["prepare_threshold"] = None
    if not is_sqlite or url.database not in (None, "", ":memory:"):
        options.update(pool_size=POOL_SIZE, max_overflow=0, pool_timeout=POOL_TIMEOUT_S)
    try:
        return create_engine(url, **options)
    except ImportError as error:
        raise _not_loaded(url, error) from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise _invalid("the URL", f"an option of {where(url)} is not accepted") from error


def _not_loaded(url: URL, error: ImportError) -> MissingDependency:
    install = next(one for one in DRIVERS[url.get_backend_name()]).install
    return MissingDependency(
        f"the driver {url.drivername} can't be loaded ({error}). Install it: {install}"
    )


def where(url: URL) -> str:
    """Return the part of a URL that may be shown: engine, hosts, ports and database."""
    host = f"{url.host or ''}{f':{url.port}' if url.port else ''}" or _hosts_of(url)
    return f"{url.get_backend_name()}://{host}/{url.database or ''}"


def _hosts_of(url: URL) -> str:
    """Return the hosts that a URL names behind its question mark, where PostgreSQL takes several.

    That is `?host=one:5432&host=two:5432`, or `?host=one,two&port=5432,5433`.
    """
    # One that begins with a slash is the folder of a socket.
    hosts = [host for host in _listed(url, "host") if not host.startswith("/")]
    ports = _listed(url, "port")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) == len(hosts):
        hosts = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
    return ",".join(hosts)


def _listed(url: URL, name: str) -> list[str]:
    values = url.normalized_query.get(name, ())
    return [one for value in values for one in value.split(",")]
