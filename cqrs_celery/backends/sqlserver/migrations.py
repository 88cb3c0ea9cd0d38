"""What SQL Server does its own way when the tables are made: row versions, and a lock."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Column, Connection, text
from sqlalchemy.dialects.mssql import ROWVERSION

from ...errors import StoreUnavailable
from ..sql.migrations.variants import MigrationVariants

#: Seconds for which migrations wait for those of another process.
WAIT_S: Final = 60

# The lock is the schema's and ends with the transaction, which in ODBC begins with the first look
# at a table, not with EXEC. Nothing answers but the last SELECT, and NOCOUNT is as it was.
_LOCK: Final = text(
    "SET NOCOUNT ON; DECLARE @schemas INT, @name NVARCHAR(255), @answer INT;"  # noqa: S608
    " SELECT @schemas = COUNT(*) FROM sys.schemas;"
    " SET @name = CONCAT('cqrs_schema ', SCHEMA_NAME());"
    " EXEC @answer = sp_getapplock @Resource = @name, @LockMode = 'Exclusive',"
    f" @LockOwner = 'Transaction', @LockTimeout = {WAIT_S * 1000};"
    " SET NOCOUNT OFF; SELECT @answer"
)


class SqlServerMigrations(MigrationVariants):
    """The variants of SQL Server."""

    new_id = "CONVERT(NVARCHAR(64), NEWID())"

    def lock(self, connection: Connection) -> None:
        """Wait until no other process runs migrations, in the transaction that runs them.

        Raises:
            StoreUnavailable: another one ran them all the time.
        """
        answer = connection.execute(_LOCK).scalar_one()
        if answer < 0:
            raise StoreUnavailable(
                "could not create the event store's tables: another process has been at it for"
                f" {WAIT_S} s (sp_getapplock says {answer}). Wait for it, or end it, and repeat."
            )

    def event_columns(self) -> list[Column[Any]]:
        """Return the row version, by which events are ordered. Of version 0001."""
        return [Column("row_version", ROWVERSION(), nullable=False)]  # type: ignore[no-untyped-call]

    def finish_event_store(self, op: Any) -> None:
        """Make the index of row versions. Of version 0001."""
        op.create_index("cqrs_events_row_version", "cqrs_events", ["row_version"], unique=True)
