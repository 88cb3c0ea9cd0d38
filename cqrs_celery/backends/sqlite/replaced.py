"""Notice that an SQLite file was replaced, for example by a backup that was moved to its path.

A connection stays with the file that it has opened, also when that has no name any more: what is
committed there is lost with the last connection. So each connection remembers which file it has
opened, and is replaced before its next use if its path leads to another one.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from sqlalchemy import Engine, event
from sqlalchemy.exc import InvalidatePoolError

#: Where a connection's record in the pool remembers its file.
_FILE: Final = "cqrs_file"

#: The number of a file that is not there.
_MISSING: Final = (0, 0)


class _File(NamedTuple):
    """A connection's file: its path, and the numbers of device and inode that it was opened at."""

    path: str
    number: tuple[int, int]

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to it; true of a database in memory."""
        return not self.path or _number_of(self.path) == self.number


class FileWatch:
    """Replaces the connections of an engine whose file was replaced, before they are used.

    While there is no file, connecting fails: SQLite would make an empty one, in the place of the
    one that is to be put there.

    Args:
        engine: whose connections.
        on_replaced: called when the file was found to be another one, or missing.
    """

    def __init__(self, engine: Engine, on_replaced: Callable[[], object]) -> None:
        self._on_replaced = on_replaced
        self._has_file = False
        self._before = threading.local()
        event.listen(engine, "do_connect", self._connecting)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._checked_out)

    def _connecting(self, dialect: Any, record: Any, arguments: Any, options: Any) -> None:
        path = str(arguments[0]) if arguments else ""
        self._before.number = number = _number_of(path)
        if self._has_file and number == _MISSING and not path.startswith(("file:", ":memory:")):
            raise sqlite3.OperationalError(f"unable to open database file: {path} is gone")

    def _connected(self, connection: Any, record: Any) -> None:
        file = _file_of(connection)
        # The file of before, if another one took its place meanwhile: then it is seen later.
        before = getattr(self._before, "number", _MISSING)
        self._before.number = _MISSING
        record.info[_FILE] = file if before == _MISSING else file._replace(number=before)
        self._has_file = True

    def _checked_out(self, connection: Any, record: Any, proxy: Any) -> None:
        if not self.is_file_of(record):
            self._on_replaced()
            raise InvalidatePoolError("the database's file was replaced")

    @staticmethod
    def is_file_of(record: Any) -> bool:
        """Return whether a connection's file is still the one at its path.

        Args:
            record: what has the connection's `info`.
        """
        file: _File | None = record.info.get(_FILE)
        return file is None or file.is_there


def _file_of(connection: sqlite3.Connection) -> _File:
    # SQLite's own name of it is absolute; the URL's may depend on the working directory.
    names = {schema: path for _, schema, path in connection.execute("PRAGMA database_list")}
    path = names["main"] or ""
    return _File(path, _number_of(path))


def _number_of(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116  once for each use, and a Path costs as much again
    except OSError:
        return _MISSING
    return found.st_dev, found.st_ino
