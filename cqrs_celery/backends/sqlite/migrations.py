"""How SQLite differs when the tables are made. Its transaction is a lock already."""

from __future__ import annotations

from ..sql.migrations.variants import MigrationVariants


class SqliteMigrations(MigrationVariants):
    """The variants of SQLite."""

    new_id = "lower(hex(randomblob(16)))"
