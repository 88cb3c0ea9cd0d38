"""A pytest plugin for both suites: talk to the transport under test, write down each outcome.

CONFORMANCE_SIDE says which transport: with "ours", each redis:// URL that Kombu's `Connection` is
given becomes a reliable-redis:// one, so that not a line of the suites is changed.
CONFORMANCE_LOG names the file to which outcomes go, one JSON line each: `{"test", "outcome"}`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import kombu.connection
import pytest

_SCHEMES = {"redis": "reliable-redis", "rediss": "reliable-rediss", "sentinel": "reliable-sentinel"}


def ours(url: Any) -> Any:
    """Return the URL, or the list or text of several, with our schemes in place of stock's."""
    if isinstance(url, (list, tuple)):
        return type(url)(map(ours, url))
    if not isinstance(url, str):
        return url
    if ";" in url:
        return ";".join(map(ours, url.split(";")))
    scheme, separator, rest = url.partition("://")
    return _SCHEMES.get(scheme, scheme) + separator + rest if separator else url


def _connect_to_ours() -> None:
    import cqrs_celery.transport  # noqa: F401 - registers the schemes

    of_kombu = kombu.connection.Connection.__init__

    def init(
        self: Any, hostname: Any = "localhost", *args: Any, alternates: Any = None, **kwargs: Any
    ) -> None:
        of_kombu(self, ours(hostname), *args, alternates=ours(alternates), **kwargs)

    kombu.connection.Connection.__init__ = init


if os.environ.get("CONFORMANCE_SIDE") == "ours":
    _connect_to_ours()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "env(name): Kombu's, the broker that a test needs")


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write an outcome down; the last one of a test is the one that counts."""
    is_setup_that_passed = report.when == "setup" and report.passed
    is_teardown_that_passed = report.when == "teardown" and report.passed
    if is_setup_that_passed or is_teardown_that_passed:
        return
    outcome = "skipped" if hasattr(report, "wasxfail") and report.skipped else report.outcome
    line = json.dumps({"test": report.nodeid, "outcome": outcome, "text": str(report.longrepr)})
    with Path(os.environ["CONFORMANCE_LOG"]).open("a") as log:
        log.write(line + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note a start: what has started and has no outcome was cut off."""
    with Path(os.environ["CONFORMANCE_LOG"]).open("a") as log:
        log.write(json.dumps({"test": nodeid, "outcome": "started"}) + "\n")
