"""Run the migrations on the connection, or for the dialect, that `schema` passes."""

from __future__ import annotations

from typing import Final

from alembic import context
from sqlalchemy import Connection, text

from cqrs_celery.backends.sql.schema import VERSION_TABLE
from cqrs_celery.errors import StoreUnavailable

#: Names the lock that is held while migrations run on PostgreSQL.
LOCK: Final = 1_668_444_020

#: Seconds for which migrations on SQL Server wait for those of another process.
WAIT_S: Final = 60

# The lock is the schema's and ends with the transaction, which in ODBC begins with the first look
# at a table, not with EXEC. Nothing answers but the last SELECT, and NOCOUNT is as it was.
_SQL_SERVER_LOCK: Final = text(
    "SET NOCOUNT ON; DECLARE @schemas INT, @name NVARCHAR(255), @answer INT;"  # noqa: S608
    " SELECT @schemas = COUNT(*) FROM sys.schemas;"
    " SET @name = CONCAT('cqrs_schema ', SCHEMA_NAME());"
    " EXEC @answer = sp_getapplock @Resource = @name, @LockMode = 'Exclusive',"
    f" @LockOwner = 'Transaction', @LockTimeout = {WAIT_S * 1000};"
    " SET NOCOUNT OFF; SELECT @answer"
)


def _lock(connection: Connection) -> None:
    """Wait until no other process runs migrations; SQLite's transaction has a lock already.

    Raises:
        StoreUnavailable: another one ran them all the time.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    elif connection.dialect.name == "mssql":
        answer = connection.execute(_SQL_SERVER_LOCK).scalar_one()
        if answer < 0:
            raise StoreUnavailable(
                "could not create the event store's tables: another process has been at it for"
                f" {WAIT_S} s (sp_getapplock says {answer}). Wait for it, or end it, and repeat."
            )


connection = context.config.attributes.get("connection")
if connection is None:
    context.configure(
        dialect_name=context.config.attributes["dialect"],
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
else:
    context.configure(connection=connection, version_table=VERSION_TABLE, transactional_ddl=True)
with context.begin_transaction():
    if connection is not None:
        _lock(connection)
    context.run_migrations()
