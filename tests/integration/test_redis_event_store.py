"""The Redis store keeps the contract that every store keeps; what is its own comes after it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.testing.event_store_contract import EventStoreContract


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


class TestRedisEventStore(EventStoreContract):
    @pytest.fixture
    def store(self, client: redis.Redis) -> RedisEventStore:
        return RedisEventStore(lambda: client, prefix="{shop}.")
