"""Make the tables, and PostgreSQL's functions that append."""

from __future__ import annotations

from importlib import resources

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, PrimaryKeyConstraint, UniqueConstraint
from sqlalchemy.dialects.mssql import ROWVERSION

from cqrs_celery.backends.sql.tables import (
    hash_type,
    id_type,
    json_type,
    key_type,
    name_type,
    number_type,
    text_type,
    time_type,
)

revision = "0001"
down_revision = None

#: What gives an id of its own to each store, also where a DBA runs the printed statements.
NEW_ID = {
    "postgresql": "md5(random()::text || clock_timestamp()::text || pg_backend_pid()::text)",
    "sqlite": "lower(hex(randomblob(16)))",
    "mssql": "CONVERT(NVARCHAR(64), NEWID())",
}


def upgrade() -> None:
    """Make them."""
    dialect = op.get_context().dialect.name
    op.create_table(
        "cqrs_streams",
        Column("stream_id", number_type(), autoincrement=True, nullable=False),
        Column("stream_key", hash_type(), nullable=False),
        Column("application", name_type(), nullable=False),
        Column("aggregate_type", name_type(), nullable=False),
        Column("aggregate_id", name_type(), nullable=False),
        Column("version", BigInteger(), nullable=False),
        PrimaryKeyConstraint("stream_id", name="cqrs_streams_pkey"),
        UniqueConstraint("stream_key", name="cqrs_streams_key"),
    )
    row_version = [Column("row_version", ROWVERSION(), nullable=False)]  # type: ignore[no-untyped-call]
    op.create_table(
        "cqrs_events",
        Column("global_position", number_type(), autoincrement=True, nullable=False),
        Column("stream_id", BigInteger(), nullable=False),
        Column("version", BigInteger(), nullable=False),
        Column("event_id", id_type(200), nullable=False),
        Column("type", name_type(), nullable=False),
        Column("type_version", Integer(), nullable=False),
        Column("payload", json_type(), nullable=False),
        Column("metadata", json_type(), nullable=False),
        Column("recorded_at", time_type(), nullable=False),
        *(row_version if dialect == "mssql" else []),
        PrimaryKeyConstraint("global_position", name="cqrs_events_pkey"),
        UniqueConstraint("stream_id", "version", name="cqrs_events_version"),
    )
    op.create_table(
        "cqrs_commands",
        Column("command_id", key_type(450), nullable=False),
        Column("position", BigInteger(), nullable=False),
        Column("outcome", text_type(), nullable=False),
        Column("expires_at", time_type(), nullable=False),
        PrimaryKeyConstraint("command_id", name="cqrs_commands_pkey"),
    )
    op.create_index("ix_cqrs_commands_expires_at", "cqrs_commands", ["expires_at"])
    op.create_table(
        "cqrs_checkpoints",
        Column("name", key_type(200), nullable=False),
        Column("position", BigInteger(), nullable=False),
        Column("updated_at", time_type(), nullable=False),
        PrimaryKeyConstraint("name", name="cqrs_checkpoints_pkey"),
    )
    op.create_table(
        "cqrs_snapshots",
        Column("stream_id", BigInteger(), nullable=False, autoincrement=False),
        Column("version", BigInteger(), nullable=False),
        Column("schema_version", Integer(), nullable=False),
        Column("payload", json_type(), nullable=False),
        Column("taken_at", time_type(), nullable=False),
        PrimaryKeyConstraint("stream_id", name="cqrs_snapshots_pkey"),
    )
    op.create_table(
        "cqrs_subscribers",
        Column("name", key_type(400), nullable=False),
        Column("subscriber", json_type(), nullable=False),
        Column("registered_at", time_type(), nullable=False),
        PrimaryKeyConstraint("name", name="cqrs_subscribers_pkey"),
    )
    op.create_table(
        "cqrs_store",
        Column("store_id", key_type(64), nullable=False),
        PrimaryKeyConstraint("store_id", name="cqrs_store_pkey"),
    )
    op.execute(f"INSERT INTO cqrs_store (store_id) VALUES ({NEW_ID[dialect]})")  # noqa: S608
    if dialect == "mssql":
        op.create_index("cqrs_events_row_version", "cqrs_events", ["row_version"], unique=True)
    if dialect == "postgresql":
        # A stream's version changes in place, without a new entry in its indexes.
        op.execute("ALTER TABLE cqrs_streams SET (fillfactor = 70)")
        scripts = resources.files("cqrs_celery.backends.postgresql.scripts")
        for name in ("append_v1.sql", "append_one_v1.sql"):
            op.execute(scripts.joinpath(name).read_text(encoding="utf-8"))
