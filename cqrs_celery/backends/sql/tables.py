"""The tables, as statements are built from them; the migrations make them.

cqrs_streams       one row a stream, with its version; its row lock is the stream's
cqrs_events        one row an event, in the order of positions; the relay's outbox
cqrs_commands      the commands that have committed, until they expire
cqrs_checkpoints   how far projections have come
cqrs_relays        one row an application: who leads its relays, to which broker, how far they are
cqrs_snapshots     the newest snapshot of a stream
cqrs_relay_subscribers  who gets which events, for the relay
cqrs_store         one row, with what tells this store from all others, and its history from those
                   that it went back from

Texts that identify are compared byte by byte, on every engine.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    BigInteger,
    Column,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
)

from .columns import (
    hash_type,
    id_type,
    json_type,
    key_type,
    name_type,
    number_type,
    text_type,
    time_type,
)

metadata: Final = MetaData()

streams: Final = Table(
    "cqrs_streams",
    metadata,
    Column("stream_id", number_type(), autoincrement=True, nullable=False),
    Column("stream_key", hash_type(), nullable=False),
    Column("application", name_type(), nullable=False),
    Column("aggregate_type", name_type(), nullable=False),
    Column("aggregate_id", name_type(), nullable=False),
    Column("version", BigInteger(), nullable=False),
    PrimaryKeyConstraint("stream_id", name="cqrs_streams_pkey"),
    UniqueConstraint("stream_key", name="cqrs_streams_key"),
)

# No foreign key to the streams: the append has the stream's row locked, and the check would be a
# second look at it for each event. No index of event ids, whose order is random: it would cost more
# than all the rest, and whether an append is a repeated one is told by stream and version.
events: Final = Table(
    "cqrs_events",
    metadata,
    Column("global_position", number_type(), autoincrement=True, nullable=False),
    Column("stream_id", BigInteger(), nullable=False),
    Column("version", BigInteger(), nullable=False),
    Column("event_id", id_type(200), nullable=False),
    Column("type", name_type(), nullable=False),
    Column("type_version", Integer(), nullable=False),
    Column("payload", json_type(), nullable=False),
    Column("metadata", json_type(), nullable=False),
    Column("recorded_at", time_type(), nullable=False),
    PrimaryKeyConstraint("global_position", name="cqrs_events_pkey"),
    UniqueConstraint("stream_id", "version", name="cqrs_events_version"),
)

commands: Final = Table(
    "cqrs_commands",
    metadata,
    Column("command_id", key_type(450), nullable=False),
    Column("position", BigInteger(), nullable=False),
    Column("outcome", text_type(), nullable=False),
    Column("expires_at", time_type(), nullable=False, index=True),
    PrimaryKeyConstraint("command_id", name="cqrs_commands_pkey"),
)

checkpoints: Final = Table(
    "cqrs_checkpoints",
    metadata,
    Column("name", key_type(200), nullable=False),
    Column("position", BigInteger(), nullable=False),
    Column("updated_at", time_type(), nullable=False),
    PrimaryKeyConstraint("name", name="cqrs_checkpoints_pkey"),
)

snapshots: Final = Table(
    "cqrs_snapshots",
    metadata,
    # Else SQL Server takes the only whole number of the key for one that it gives itself.
    Column("stream_id", BigInteger(), autoincrement=False, nullable=False),
    Column("version", BigInteger(), nullable=False),
    Column("schema_version", Integer(), nullable=False),
    Column("payload", json_type(), nullable=False),
    Column("taken_at", time_type(), nullable=False),
    PrimaryKeyConstraint("stream_id", name="cqrs_snapshots_pkey"),
)

# A lease ends at a time of the database's own clock, in milliseconds since 1970, which each engine
# can count and compare.
relays: Final = Table(
    "cqrs_relays",
    metadata,
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

# Whose application is empty were registered before applications were told apart.
subscribers: Final = Table(
    "cqrs_relay_subscribers",
    metadata,
    Column("application", key_type(200), nullable=False),
    Column("name", key_type(200), nullable=False),
    Column("subscriber", json_type(), nullable=False),
    Column("registered_at", time_type(), nullable=False),
    PrimaryKeyConstraint("application", "name", name="cqrs_relay_subscribers_pkey"),
)

identity: Final = Table(
    "cqrs_store",
    metadata,
    Column("store_id", key_type(64), nullable=False),
    PrimaryKeyConstraint("store_id", name="cqrs_store_pkey"),
)
