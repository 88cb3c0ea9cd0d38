"""On Redis Cluster one node has a virtual host's keys; any other says so, and names that one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import redis
from kombu import Connection, Producer
from redis.crc import key_slot

from cqrs_celery.queue.polling import IdlePoll
from cqrs_celery.queue.values import Destination, Publish
from cqrs_celery.transport import TRANSPORT
from cqrs_celery.transport.redis_errors import ServerUnable
from tests.conftest import RedisFactory
from tests.nodes import RedisNode
from tests.waiting import wait_until

PREFIX = "{shop}."


class Pair:
    """Two masters of one cluster; the first one has all slots, until one is given away."""

    def __init__(self, one: RedisNode, two: RedisNode) -> None:
        self.one, self.two = one, two
        self.clients: list[Any] = [node.client() for node in (one, two)]
        self.slot = self.clients[0].execute_command("CLUSTER", "KEYSLOT", PREFIX)

    def join(self) -> None:
        first = self.clients[0]
        for start in range(0, 16_384, 1_024):
            first.execute_command("CLUSTER", "ADDSLOTS", *range(start, start + 1_024))
        first.execute_command("CLUSTER", "MEET", "127.0.0.1", self.two.port)
        wait_until(lambda: all(len(one.cluster("NODES")) == 2 for one in self.clients), 20, "both")
        wait_until(lambda: self._is_ok(), 20, "the cluster")

    def _is_ok(self) -> bool:
        return all(one.cluster("INFO")["cluster_state"] == "ok" for one in self.clients)

    def id_of_second(self) -> str:
        return str(self.clients[1].execute_command("CLUSTER", "MYID").decode())

    def begin_move(self) -> None:
        self.clients[0].execute_command(
            "CLUSTER", "SETSLOT", self.slot, "MIGRATING", self.id_of_second()
        )

    def give_away(self) -> None:
        for one in self.clients[::-1]:
            one.execute_command("CLUSTER", "SETSLOT", self.slot, "NODE", self.id_of_second())

    def connect(self, *nodes: RedisNode) -> Connection:
        urls = ";".join(node.url.replace("redis:", "reliable-redis:") for node in nodes)
        return Connection(urls, transport_options={"global_keyprefix": PREFIX, "lease_s": 1})


@pytest.fixture
def pair(redis_factory: RedisFactory) -> Iterator[Pair]:
    assert TRANSPORT  # its import has made the URLs' scheme known
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
    nodes = [redis_factory(appendonly=False, options=options) for _ in range(2)]
    found = Pair(*nodes)
    found.join()
    yield found
    for client in found.clients:
        client.close()


def test_a_virtual_host_with_a_hash_tag_works_on_the_node_that_has_its_slot(pair: Pair) -> None:
    with pair.connect(pair.one) as connection:
        queue = connection.SimpleQueue("orders")
        for n in range(3):
            queue.put(n)
        got = [queue.get(timeout=5) for _ in range(3)]
        assert [message.payload for message in got] == [0, 1, 2]
        for message in got:
            message.ack()
        queue.close()


def test_another_node_names_the_one_that_has_the_keys_and_a_failover_list_finds_it(
    pair: Pair,
) -> None:
    # given a slot that another node has got after somebody connected
    with pair.connect(pair.one) as connection, pair.connect(pair.one) as another:
        channel = connection.channel()
        channel.exchange_declare("shop", "topic")
        queue = channel.queue
        pair.give_away()
        # when the former one is asked, by the queue, by Kombu's own commands, or by a connection
        for ask in (
            lambda: IdlePoll(queue, "anna").may_take(["orders"]),
            lambda: queue.publish_many([Publish([Destination("orders", "{}")])]),
            lambda: Producer(channel).publish({}, exchange="shop", routing_key="orders"),
            another.channel,
        ):
            with pytest.raises(ServerUnable) as error:
                ask()
            # then that is an error of the connection, and says where to connect
            assert isinstance(error.value, connection.connection_errors)
            text = str(error.value)
            assert text.startswith(f"MOVED {pair.slot} 127.0.0.1:{pair.two.port}: ")
            assert "name that one in the broker's URL" in text
    # and with both in a list, a connection finds it, and what is sent arrives
    with pair.connect(pair.one, pair.two) as connection:
        connection.ensure_connection(max_retries=5, interval_start=0)
        assert not IdlePoll(connection.channel().queue, "anna").may_take(["orders"])
    with pair.connect(pair.one, pair.two) as connection:
        Producer(connection).publish(
            {"n": 1},
            routing_key="orders",
            retry=True,
            retry_policy={"max_retries": 5, "interval_start": 0},
        )
    assert pair.clients[1].llen(f"{PREFIX}orders") == 1


def test_a_slot_on_its_way_is_an_error_that_says_what_to_do(pair: Pair) -> None:
    # given a slot that is being moved, whose keys have left, after somebody connected
    with pair.connect(pair.one) as connection, pair.connect(pair.one) as another:
        queue = connection.channel().queue
        pair.begin_move()
        for ask in (
            lambda: IdlePoll(queue, "anna").may_take(["orders"]),
            lambda: queue.declare("orders"),
            another.channel,
        ):
            with pytest.raises(redis.ConnectionError) as error:
                ask()
            assert "their slot is being moved" in str(error.value)
            assert "stop workers and senders" in str(error.value)


def test_a_prefix_without_a_hash_tag_is_named_as_a_reason(pair: Pair) -> None:
    # given a prefix without one, and a queue whose list is in another node's slot than the counter
    pair.give_away()
    assert key_slot(b"0.cq:id") != pair.slot
    name = next(f"q{n}" for n in count() if key_slot(f"0.q{n}".encode()) == pair.slot)
    url = pair.one.url.replace("redis:", "reliable-redis:")
    # when something is sent there, then the error says what is missing
    with (
        Connection(url, transport_options={"global_keyprefix": "0."}) as connection,
        pytest.raises(redis.ConnectionError, match="has no hash tag"),
    ):
        Producer(connection.channel()).publish({}, routing_key=name)
