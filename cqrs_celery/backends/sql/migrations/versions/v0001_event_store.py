"""Make the tables, and what an engine needs besides, as PostgreSQL its functions that append."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, PrimaryKeyConstraint, UniqueConstraint

from cqrs_celery.backends.sql.backends import backend_of
from cqrs_celery.backends.sql.columns import (
    hash_type,
    id_type,
    json_type,
    key_type,
    name_type,
    number_type,
    text_type,
    time_type,
)
from cqrs_celery.backends.sql.migrations.variants import MigrationVariants

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make them."""
    variants = backend_of(op.get_context().dialect.name).migrations()
    _make_streams(variants)
    _make_others()
    op.execute(f"INSERT INTO cqrs_store (store_id) VALUES ({variants.new_id})")  # noqa: S608
    variants.finish_event_store(op)


def _make_streams(variants: MigrationVariants) -> None:
    """Make the tables of streams and events."""
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
        *variants.event_columns(),
        PrimaryKeyConstraint("global_position", name="cqrs_events_pkey"),
        UniqueConstraint("stream_id", "version", name="cqrs_events_version"),
    )


def _make_others() -> None:
    """Make the other tables: what has committed, how far readers are, snapshots, and the store."""
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
