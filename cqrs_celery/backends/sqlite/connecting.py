"""How SQLite's connections are opened."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Engine, event

#: Seconds to wait for another process to end its write.
BUSY_S: Final = 30.0


def prepare_engine(engine: Engine) -> None:
    """Let readers and the writer of a file not wait for each other, and commits reach the disk."""

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
