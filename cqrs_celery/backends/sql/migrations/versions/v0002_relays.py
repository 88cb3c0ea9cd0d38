"""Tell applications apart: each has its relays' lease, their checkpoint, and its subscribers."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, PrimaryKeyConstraint

from cqrs_celery.backends.sql.columns import json_type, key_type, text_type, time_type

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables, and keep who is subscribed; the first relay takes over its checkpoint."""
    op.create_table(
        "cqrs_relays",
        Column("application", key_type(200), nullable=False),
        Column("broker_id", key_type(64), nullable=False),
        Column("broker", text_type(), nullable=False),
        Column("leader", text_type(), nullable=False),
        Column("token", key_type(64), nullable=False),
        Column("lease_until_ms", BigInteger(), nullable=False),
        Column("position", BigInteger(), nullable=True),
        Column("event_id", key_type(200), nullable=False),
        PrimaryKeyConstraint("application", name="cqrs_relays_pkey"),
    )
    op.create_table(
        "cqrs_relay_subscribers",
        Column("application", key_type(200), nullable=False),
        Column("name", key_type(200), nullable=False),
        Column("subscriber", json_type(), nullable=False),
        Column("registered_at", time_type(), nullable=False),
        PrimaryKeyConstraint("application", "name", name="cqrs_relay_subscribers_pkey"),
    )
    op.execute(
        "INSERT INTO cqrs_relay_subscribers (application, name, subscriber, registered_at)"
        " SELECT '', name, subscriber, registered_at FROM cqrs_subscribers"
    )
    op.drop_table("cqrs_subscribers")
