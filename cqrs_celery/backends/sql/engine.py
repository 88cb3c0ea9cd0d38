"""Make a SQLAlchemy engine from a URL: complete it, find its driver, keep its password secret."""

from __future__ import annotations

import importlib.util
from typing import Any, Final

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from ...errors import InvalidSetting, MissingDependency
from .backends import SqlBackend, backend_named, sql_backends

#: Connections that a process keeps open, at most.
POOL_SIZE: Final = 20

#: Seconds to wait for one of them.
POOL_TIMEOUT_S: Final = 30.0


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
    name, _, driver = url.drivername.partition("+")
    backend = backend_named(name)
    if backend is None:
        raise _invalid(setting, f"it begins with {name}://")
    known = {one.name: one for one in backend.drivers}
    if (refusal := backend.driver_refusal(driver)) is not None:
        raise _invalid(setting, refusal)
    if driver and driver not in known:
        raise _invalid(setting, f"its driver is {driver}; known are {', '.join(known)}")
    wanted = [known[driver]] if driver else list(known.values())
    for one in wanted:
        if importlib.util.find_spec(one.module) is not None:
            return url.set(drivername=f"{backend.name}+{one.name}")
    raise MissingDependency(
        f"no driver for {backend.name} is installed: {' or '.join(one.module for one in wanted)}"
        f" was looked for. Install it: {wanted[0].install}"
    )


def accepted_urls() -> str:
    """Return how the URLs of event stores begin, as errors say it."""
    return ", ".join((*(one.example for one in sql_backends()), "memory://"))


def _invalid(setting: str, found: str) -> InvalidSetting:
    accepted = accepted_urls()
    return InvalidSetting(
        f"{setting} names no event store: {found}; accepted: {accepted}",
        setting=setting,
        accepted=accepted,
    )


def make_engine(url: URL, backend: SqlBackend) -> Engine:
    """Return an engine that has not connected yet, and shows no parameters in its errors.

    Args:
        url: has its driver.
        backend: the engine that the URL names.

    Raises:
        MissingDependency: the driver is there but can't be loaded.
        InvalidSetting: the URL names no database in which a store can be, or its options don't fit
            the driver.
    """
    backend.check_url(url)
    options: dict[str, Any] = {"hide_parameters": True}
    options.update(pool_size=POOL_SIZE, max_overflow=0, pool_timeout=POOL_TIMEOUT_S)
    try:
        engine = create_engine(url, **options, **backend.engine_options(url))
    except ImportError as error:
        raise MissingDependency(
            f"the driver {url.drivername} can't be loaded ({error}). Install it:"
            f" {backend.drivers[0].install}"
        ) from error
    except (ArgumentError, TypeError, ValueError) as error:
        raise _invalid("the URL", f"an option of {where(url)} is not accepted") from error
    backend.prepare(engine)
    return engine


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
