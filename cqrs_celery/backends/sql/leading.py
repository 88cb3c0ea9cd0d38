"""Let one of several relays be the active one, for as long as its connection or process lives."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

_ALIVE = text("SELECT 1")


class Leadership:
    """Be the active one, until the `with` block is left or the connection breaks.

    Args:
        connection: holds the lock, which ends with it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def holds(self) -> bool:
        """Say whether the connection, and so the lock, is still there."""
        try:
            self._connection.execute(_ALIVE)
        except SQLAlchemyError:
            return False
        return True

    def release(self) -> None:
        """Let another one be it; a second time does nothing."""
        if not self._connection.closed:
            # The lock is the connection's, so that must not go back to the pool.
            self._connection.invalidate()
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()


class FileLeadership(Leadership):
    """Be the active one by a lock on a file, which ends with the process.

    Args:
        file: is locked, and open.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def holds(self) -> bool:
        """Say yes: nobody can take it away."""
        return True

    def release(self) -> None:
        """Let another one be it; a second time does nothing."""
        self._file.close()
