"""The Redis store keeps the contract that every store keeps; what is its own comes after it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import redis
from msgspec.structs import replace

from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.errors import ConcurrencyError, LeaseLost, StoreUnavailable
from cqrs_celery.messages.metadata import Metadata
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Taken
from cqrs_celery.store.events import Lease, StreamAppend, Subscriber
from cqrs_celery.store.stream import NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import (
    BOLT,
    NUT,
    EventStoreContract,
    append,
    event,
)
from tests.nodes import REPOSITORY, RedisNode
from tests.waiting import wait_until


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


class TestRedisEventStore(EventStoreContract):
    @pytest.fixture
    def store(self, client: redis.Redis) -> RedisEventStore:
        return RedisEventStore(lambda: client, prefix="{shop}.")


@pytest.fixture
def store(client: redis.Redis) -> RedisEventStore:
    return RedisEventStore(lambda: client, body=("<", ">"))


def subscribe(store: RedisEventStore, count: int, *topics: str) -> None:
    for number in range(1, count + 1):
        head = (f'{{"to":{number},"id":"', '","again":"', '","root":"', '","parent":"', '"}')
        store.register(
            Subscriber(
                f"task-{number}", topics or ("inventory.items_checked_in",), f"q{number}", head
            )
        )


def take_all(client: redis.Redis, queue: str) -> list[Taken]:
    reliable = ReliableQueue(client)
    reliable.beat("taker", 60_000, register=True)
    return list(reliable.settle_and_take("taker", queues=[queue], count=100, run=100).taken)


def calls(client: redis.Redis) -> dict[str, int]:
    stats = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): entry["calls"] for name, entry in stats.items()}


def test_an_append_of_one_event_with_three_subscriptions_is_one_round_trip(
    client: redis.Redis, store: RedisEventStore
) -> None:
    """ACCEPTANCE 61 and 64."""
    # given three subscriptions, and a server that knows the script
    subscribe(store, 3)
    append(store, BOLT, NO_STREAM, event())
    client.config_resetstat()
    # when one event is appended
    append(store, BOLT, 1, event())
    # then one command came from outside; the others ran inside it
    counted = calls(client)
    outside = {"evalsha", "eval", "multi", "exec", "script|load", "ping", "hello", "auth"}
    assert {name: n for name, n in counted.items() if name in outside} == {"evalsha": 1}
    # and each subscription has the event twice, in order
    for queue in ("q1", "q2", "q3"):
        assert len(take_all(client, queue)) == 2


def test_an_event_is_delivered_to_each_subscription_with_its_place_and_ids(
    client: redis.Redis, store: RedisEventStore
) -> None:
    """ACCEPTANCE 64."""
    # given
    subscribe(store, 2)
    metadata = Metadata(correlation_id='root "1"', causation_id="cause")
    # when
    append(store, BOLT, NO_STREAM, replace(event(), event_id="e-1", metadata=metadata))
    # then
    for number in (1, 2):
        [taken] = take_all(client, f"q{number}")
        assert json.loads(taken.payload) == {
            "to": number, "id": "e-1", "again": "e-1", "root": 'root "1"', "parent": "cause",
        }  # fmt: skip
        assert taken.sequence == BOLT.key
        body = json.loads(taken.body.removeprefix(b"<").removesuffix(b">"))
        assert (body["stream"], body["position"], body["version"]) == (BOLT.key, 1, 1)
        assert (body["event_id"], body["type"]) == ("e-1", "inventory.items_checked_in")


def test_a_commit_with_one_stale_stream_writes_nothing_and_delivers_nothing(
    client: redis.Redis, store: RedisEventStore
) -> None:
    """ACCEPTANCE 65."""
    # given three streams
    subscribe(store, 3)
    streams = [BOLT, NUT, BOLT._replace(aggregate_id="third")]
    for stream in streams:
        append(store, stream, NO_STREAM, event())
    before = {key: client.dump(key) for key in client.scan_iter()}
    # when a commit of all of them has one stale
    appends = [StreamAppend(s, v, [event()]) for s, v in zip(streams, (1, 0, 1), strict=True)]
    with pytest.raises(ConcurrencyError):
        store.append(appends)
    # then no key has changed
    assert {key: client.dump(key) for key in client.scan_iter()} == before


def test_an_event_nobody_subscribes_to_is_stored_and_leaves_nothing_in_the_queue(
    client: redis.Redis, store: RedisEventStore
) -> None:
    append(store, BOLT, NO_STREAM, event())
    assert sorted(client.scan_iter()) == [b"cq:all", b"cq:stream:" + BOLT.key.encode()]


def test_a_subscriber_registered_anew_gets_only_what_it_asks_for_now(
    client: redis.Redis, store: RedisEventStore
) -> None:
    # given a subscriber of two types
    subscribe(store, 1, "inventory.items_checked_in", "other.thing")
    # when it is registered for one of them alone
    subscribe(store, 1, "other.thing")
    append(store, BOLT, NO_STREAM, event())
    # then the other one no longer reaches it
    assert take_all(client, "q1") == []
    # and unregistered, nothing does
    assert store.unregister("task-1", ["other.thing"]) == 1


def test_keys_carry_application_aggregate_type_and_id(
    client: redis.Redis, store: RedisEventStore
) -> None:
    """ACCEPTANCE 62, 63."""
    append(store, StreamName("shop", "Basket", "7"), NO_STREAM, event())
    assert client.exists("cq:stream:shop:Basket:7")


def test_a_commit_under_a_lost_lease_is_refused_and_writes_nothing(
    client: redis.Redis, store: RedisEventStore
) -> None:
    # given a worker that holds a message
    subscribe(store, 1)
    append(store, BOLT, NO_STREAM, event())
    queue = ReliableQueue(client)
    queue.beat("worker", 60_000, register=True)
    [taken] = queue.settle_and_take("worker", queues=["q1"], count=1).taken
    lease = Lease("worker", taken.id, taken.fence)
    # then it may commit
    store.append([StreamAppend(NUT, NO_STREAM, [event()])], lease=lease)
    # but not once others have taken over
    queue.leave("worker")
    with pytest.raises(LeaseLost) as refused:
        store.append([StreamAppend(NUT, 1, [event()])], lease=lease)
    assert refused.value.message_id == taken.id
    assert len(store.read_stream(NUT)) == 1


def test_a_server_that_is_away_is_one_clear_error(fresh_redis_node: RedisNode) -> None:
    # given a store whose server has died
    with fresh_redis_node.client() as client:
        store = RedisEventStore(lambda: client, where="redis://127.0.0.1")
        append(store, BOLT, NO_STREAM, event())
        fresh_redis_node.kill()
        # then everything says so
        for use in (
            lambda: append(store, BOLT, 1, event()),
            lambda: store.read_stream(BOLT),
            lambda: store.read_all(),
            lambda: store.find_command("c"),
        ):
            with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1 does not answer"):
                use()
        # and when it is back, nothing is lost
        fresh_redis_node.restart()
        assert append(store, BOLT, 1, event()).versions == (2,)


#: A process that appends to one stream, loading it anew after each conflict.
WRITER = """
import sys
import redis
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.errors import ConcurrencyError
from cqrs_celery.testing.event_store_contract import BOLT, append, event

# It waits for the slowest of 32 starts.
with redis.Redis.from_url(sys.argv[1], socket_timeout=None) as client:
    store = RedisEventStore(lambda: client)
    client.incr("ready")
    client.blpop("go:" + sys.argv[2], 60)
    successes = losses = 0
    for _ in range(int(sys.argv[3])):
        version = len(store.read_stream(BOLT))
        try:
            append(store, BOLT, version, event())
            successes += 1
        except ConcurrencyError as error:
            assert (error.expected, error.stream) == (version, str(BOLT))
            assert error.found > version
            losses += 1
print(successes, losses)
"""


def test_32_processes_append_to_one_aggregate_and_every_loser_knows(
    redis_url: str, client: redis.Redis, store: RedisEventStore
) -> None:
    # given 32 writers that begin together
    attempts = 25
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, redis_url, str(number), str(attempts)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(32)
    ]
    try:
        wait_until(lambda: client.get("ready") == b"32", 60, "32 writers")
        for number in range(32):
            client.rpush(f"go:{number}", 1)
        # when all have tried
        outputs = [writer.communicate(timeout=60)[0].split() for writer in writers]
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
    # then the version is the number of successes, and nobody else got through
    successes = sum(int(output[0]) for output in outputs)
    losses = sum(int(output[1]) for output in outputs)
    assert successes + losses == 32 * attempts
    assert losses > 0
    versions = [stored.version for stored in store.read_stream(BOLT)]
    assert versions == list(range(1, successes + 1))
    # and the positions have no gap and no double
    positions = [stored.global_position for stored in store.read_all(limit=10_000)]
    assert positions == list(range(1, successes + 1))
