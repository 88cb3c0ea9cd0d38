"""Let a worker's log say all that a record was told, for tests that read it.

    tell_more()   # in the application's module

makes a line of JSON for each record of the library, which `read_said` finds again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from celery.signals import after_setup_logger

#: What a log record has besides what it is told.
_USUAL = {*vars(logging.makeLogRecord({})), "message", "asctime", "data"}

#: A line that says more.
_MORE = "@{"


class Said(NamedTuple):
    """Be what a worker's log says.

    Attributes:
        text: the record's.
        at: monotonic time.
        group: the worker's process group.
        pid: the process that said it.
        facts: what the record was told besides.
    """

    text: str
    at: float
    group: int
    pid: int
    facts: dict[str, Any]


class Formatter(logging.Formatter):
    """Write a line of JSON before each line of the library's."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the usual line, and what the record was told."""
        line = super().format(record)
        if not record.name.startswith("cqrs_celery"):
            return line
        told = {name: value for name, value in vars(record).items() if name not in _USUAL}
        facts = {
            "text": record.getMessage(),
            "at": time.monotonic(),
            "group": os.getpgid(0),
            "pid": os.getpid(),
        }
        return f"@{json.dumps(facts | told, default=str)}\n{line}"


def tell_more() -> None:
    """Let the worker of this process say more."""
    after_setup_logger.connect(_set_formatter)


def _set_formatter(logger: logging.Logger, **_: Any) -> None:
    for handler in logger.handlers:
        handler.setFormatter(Formatter("[%(levelname)s/%(processName)s] %(message)s"))


def read_said(*logs: str) -> list[Said]:
    """Return what the logs of workers say besides text, in the order of time."""
    return sorted(_read(logs), key=lambda said: said.at)


def _read(logs: Iterable[str]) -> Iterable[Said]:
    for log in logs:
        for line in log.splitlines():
            start = line.find(_MORE)
            if start >= 0:
                facts = json.loads(line[start + 1 :])
                text, at, group, pid = map(facts.pop, ("text", "at", "group", "pid"))
                yield Said(text, at, group, pid, facts)
