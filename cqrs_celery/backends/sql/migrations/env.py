"""Run the migrations on the connection, or for the dialect, that `schema` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from cqrs_celery.backends.sql.schema import VERSION_TABLE

#: Held while migrations run on PostgreSQL, so that two at once come one after the other.
LOCK = 1_668_444_020

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
    if connection is not None and connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
    context.run_migrations()
