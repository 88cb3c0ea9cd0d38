"""What SQLite does its own way when the tables are made; its transaction has a lock already."""

from __future__ import annotations

from ..sql.migrations.variants import MigrationVariants


class SqliteMigrations(MigrationVariants):
    """The variants of SQLite."""

    new_id = "lower(hex(randomblob(16)))"
