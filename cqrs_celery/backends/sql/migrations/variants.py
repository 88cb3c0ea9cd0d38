"""What an engine does its own way when the tables are made.

What a released migration asks for is never changed, as the migration itself is not.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection


class MigrationVariants:
    """The variants of one engine. What is here holds for most; an engine replaces the others.

    Attributes:
        new_id: the expression that gives an id of its own to each store, also where a DBA runs the
            printed statements.
    """

    new_id: str

    def lock(self, connection: Connection) -> None:
        """Wait until no other process runs migrations, in the transaction that runs them.

        Raises:
            StoreUnavailable: another one ran them all the time.
        """

    def event_columns(self) -> list[Column[Any]]:
        """Return columns of the events that the others do not have. Of version 0001."""
        return []

    def finish_event_store(self, op: Any) -> None:
        """Do what follows the making of the first tables. Of version 0001.

        Args:
            op: Alembic's operations.
        """
