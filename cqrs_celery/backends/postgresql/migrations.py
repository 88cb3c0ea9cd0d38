"""What PostgreSQL does its own way when the tables are made: functions that append, and a lock."""

from __future__ import annotations

from importlib import resources
from typing import Any, Final

from sqlalchemy import Connection, text

from ..sql.migrations.variants import MigrationVariants

#: Names the lock that is held while migrations run.
LOCK: Final = 1_668_444_020


class PostgresqlMigrations(MigrationVariants):
    """The variants of PostgreSQL."""

    new_id = "md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text)"

    def lock(self, connection: Connection) -> None:
        """Wait until no other process runs migrations, in the transaction that runs them."""
        connection.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))

    def finish_event_store(self, op: Any) -> None:
        """Make the functions that append. Of version 0001."""
        # A stream's version changes in place, without a new entry in its indexes.
        op.execute("ALTER TABLE cqrs_streams SET (fillfactor = 70)")
        scripts = resources.files("cqrs_celery.backends.postgresql.scripts")
        for name in ("append_v1.sql", "append_one_v1.sql"):
            op.execute(scripts.joinpath(name).read_text(encoding="utf-8"))
