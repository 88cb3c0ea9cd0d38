"""The snapshot stores in Redis, SQLite and PostgreSQL keep the contract that every one keeps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.backends.redis.snapshot_store import RedisSnapshotStore
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.backends.sql.snapshot_store import SqlSnapshotStore
from cqrs_celery.backends.sql.tables import metadata
from cqrs_celery.errors import SchemaError, StoreUnavailable
from cqrs_celery.store.events import StreamAppend
from cqrs_celery.store.ports import SnapshotStore
from cqrs_celery.store.stream import NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import BOLT, events
from cqrs_celery.testing.snapshot_store_contract import (
    SnapshotsBesideEventsContract,
    SnapshotStoreContract,
    snapshot,
)
from tests.nodes import RedisNode
from tests.postgres import DRIVERS, PostgresNode, with_driver


def sql_store(url: str) -> SqlEventStore:
    store = open_event_store(url)
    assert isinstance(store, SqlEventStore)
    return store


class TestRedisSnapshotStore(SnapshotStoreContract):
    @pytest.fixture
    def snapshots(self, redis_url: str) -> Iterator[RedisSnapshotStore]:
        with redis.Redis.from_url(redis_url) as client:
            yield RedisSnapshotStore(lambda: client, prefix="{shop}.")


class SqlContract(SnapshotStoreContract):
    """In a SQL database, a snapshot belongs to a stream that is there."""

    def prepare(self, snapshots: SnapshotStore, streams: Iterable[StreamName]) -> None:
        assert isinstance(snapshots, SqlSnapshotStore)
        store = snapshots._store
        assert isinstance(store, SqlEventStore)
        new = [stream for stream in streams if not store.read_stream(stream, limit=1)]
        if new:
            store.append([StreamAppend(stream, NO_STREAM, events(1)) for stream in new])


class TestSqliteSnapshotStore(SqlContract):
    @pytest.fixture
    def snapshots(self, tmp_path: Path) -> Iterator[SqlSnapshotStore]:
        store = sql_store(f"sqlite:///{tmp_path / 'events.db'}")
        create_schema(store)
        yield store.snapshots()
        store.close()


@pytest.fixture(scope="module", params=DRIVERS)
def database(request: pytest.FixtureRequest, postgres_node: PostgresNode) -> Iterator[str]:
    url = with_driver(postgres_node.create_database("snapshots"), request.param)
    store = sql_store(url)
    create_schema(store)
    store.close()
    yield url
    postgres_node.drop_database("snapshots")


class TestPostgresqlSnapshotStore(SqlContract):
    @pytest.fixture
    def snapshots(self, database: str) -> Iterator[SqlSnapshotStore]:
        store = sql_store(database)
        with store.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
        yield store.snapshots()
        store.close()


class TestRedisSnapshotsBesideEvents(SnapshotsBesideEventsContract):
    @pytest.fixture
    def store(self, redis_url: str) -> Iterator[RedisEventStore]:
        with redis.Redis.from_url(redis_url) as client:
            yield RedisEventStore(lambda: client, prefix="{shop}.")


class TestSqliteSnapshotsBesideEvents(SnapshotsBesideEventsContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[SqlEventStore]:
        store = sql_store(f"sqlite:///{tmp_path / 'events.db'}")
        create_schema(store)
        yield store
        store.close()


class TestPostgresqlSnapshotsBesideEvents(SnapshotsBesideEventsContract):
    @pytest.fixture
    def store(self, database: str) -> Iterator[SqlEventStore]:
        store = sql_store(database)
        with store.engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
        yield store
        store.close()


def test_a_snapshot_of_a_stream_without_events_is_refused_by_a_sql_store(tmp_path: Path) -> None:
    store = sql_store(f"sqlite:///{tmp_path / 'events.db'}")
    create_schema(store)
    assert store.snapshots().put(snapshot()) is False
    store.close()


def test_a_file_without_tables_is_one_clear_error(tmp_path: Path) -> None:
    snapshots = sql_store(f"sqlite:///{tmp_path / 'events.db'}").snapshots()
    for use in (
        lambda: snapshots.find(BOLT),
        lambda: snapshots.find_with_newer(BOLT, 1),
        lambda: snapshots.put(snapshot()),
        lambda: snapshots.remove(BOLT),
        lambda: list(snapshots.streams("inventory", "InventoryItem")),
    ):
        with pytest.raises(SchemaError, match="cqrs schema create"):
            use()


def test_a_redis_that_does_not_answer_is_one_clear_error(fresh_redis_node: RedisNode) -> None:
    client = fresh_redis_node.client()
    snapshots = RedisSnapshotStore(lambda: client)
    fresh_redis_node.kill()
    for use in (
        lambda: snapshots.find(BOLT),
        lambda: snapshots.find_with_newer(BOLT, 1),
        lambda: snapshots.put(snapshot()),
        lambda: snapshots.remove(BOLT),
        lambda: list(snapshots.streams("inventory", "InventoryItem")),
    ):
        with pytest.raises(StoreUnavailable, match="snapshot"):
            use()


def test_put_and_find_are_one_round_trip_each(redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        snapshots = RedisSnapshotStore(lambda: client)
        snapshots.put(snapshot())
        before = client.info("stats")["total_reads_processed"]
        snapshots.put(snapshot(version=8))
        snapshots.find(BOLT)
        # and one that asks
        assert client.info("stats")["total_reads_processed"] - before == 3


def test_a_forked_child_makes_connections_of_its_own(tmp_path: Path) -> None:
    store = sql_store(f"sqlite:///{tmp_path / 'events.db'}")
    create_schema(store)
    store.append([StreamAppend(BOLT, NO_STREAM, events(1))])
    snapshots = store.snapshots()
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if snapshots.put(snapshot(version=1)) else 1)
        except BaseException:  # noqa: BLE001
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert snapshots.find(BOLT) == snapshot(version=1)
    store.close()
