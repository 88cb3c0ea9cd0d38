"""Run the migrations on the connection, or for the dialect, that `schema` passes."""

from __future__ import annotations

from alembic import context

from cqrs_celery.backends.sql.backends import backend_of
from cqrs_celery.backends.sql.schema import VERSION_TABLE

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
        backend_of(connection.dialect.name).migrations().lock(connection)
    context.run_migrations()
