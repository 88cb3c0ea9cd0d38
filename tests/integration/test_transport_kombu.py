"""The transport under Kombu alone: queues, consumers and messages as any transport has them."""

from __future__ import annotations

import gc
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from queue import Empty
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.exceptions import ChannelError

from cqrs_celery.transport import TRANSPORT
from tests.waiting import wait_until


def connect(url: str, **options: Any) -> Connection:
    return Connection(url, transport=TRANSPORT, transport_options={"lease_s": 1, **options})


@pytest.fixture
def connection(redis_url: str) -> Iterator[Connection]:
    """Give a connection to the emptied server; closing it ends all that it has started."""
    with connect(redis_url) as connection:
        yield connection
    wait_until(lambda: not leases(), 5, lambda: f"the end of {leases()}")


def leases() -> list[str]:
    """Return the names of the threads that renew a lease in this process."""
    return [thread.name for thread in threading.enumerate() if "cqrs-lease" in thread.name]


def fill(connection: Connection, queue: str, count: int) -> None:
    simple = connection.SimpleQueue(queue)
    for n in range(count):
        simple.put({"n": n})
    simple.close()


def test_a_simple_queue_puts_gets_and_says_when_it_is_empty(connection: Connection) -> None:
    queue = connection.SimpleQueue("simple")
    queue.put({"text": "Grüße \N{SNOWMAN}"}, headers={"a": 1}, serializer="json")
    queue.put(b"\x00\xff", content_type="application/octet-stream", content_encoding="binary")
    assert queue.qsize() == 2
    first = queue.get(timeout=5)
    assert first.payload == {"text": "Grüße \N{SNOWMAN}"}
    assert first.headers["a"] == 1
    first.ack()
    second = queue.get(timeout=5)
    assert second.body == b"\x00\xff"
    second.ack()
    with pytest.raises(Empty):
        queue.get(block=False)
    with pytest.raises(Empty):
        queue.get(timeout=0.1)
    queue.close()


def test_clear_purges_and_says_how_many(connection: Connection) -> None:
    queue = connection.SimpleQueue("simple")
    for n in range(3):
        queue.put(n)
    assert queue.clear() == 3
    assert queue.qsize() == 0
    queue.close()


def test_basic_get_with_and_without_an_acknowledgement(connection: Connection) -> None:
    fill(connection, "line", 3)
    with connection.channel() as channel:
        queue = Queue("line")(channel)
        # what is got without one is gone
        message = queue.get(no_ack=True)
        assert message is not None
        assert message.payload == {"n": 0}
        # what is got with one is somebody's until it is settled
        message = queue.get()
        assert message is not None
        message.ack()
        message = queue.get()
        assert message is not None
        message.reject()
        assert queue.get() is None
    with connection.channel() as channel:
        assert Queue("line")(channel).get() is None


def test_a_passive_declaration_says_how_many_wait_or_that_there_is_no_such_queue(
    connection: Connection,
) -> None:
    fill(connection, "line", 3)
    with connection.channel() as channel:
        declared = channel.queue_declare("line", passive=True)
        assert (declared.queue, declared.message_count) == ("line", 3)
        with pytest.raises(ChannelError):
            channel.queue_declare("no-such-queue", passive=True)


def test_delete_drops_the_messages_and_the_queue(connection: Connection) -> None:
    fill(connection, "line", 2)
    with connection.channel() as channel:
        queue = Queue("line", Exchange("line"), routing_key="line")(channel)
        queue.declare()
        # if it must be empty, a queue that is not stays
        channel.queue_delete("line", if_empty=True)
        assert channel.queue_declare("line", passive=True).message_count == 2
        queue.delete()
        with pytest.raises(ChannelError):
            channel.queue_declare("line", passive=True)
        assert channel.client.keys("*cq:msg*") == []


def test_drain_events_waits_as_long_as_it_is_told(connection: Connection) -> None:
    got: list[Any] = []
    with connection.channel() as channel:
        queue = Queue("line")(channel)
        with Consumer(channel, [queue], callbacks=[lambda body, message: got.append(message)]):
            # nothing there
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.1)
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0)
            # something that comes meanwhile, from elsewhere
            with connection.clone() as other:
                fill(other, "line", 3)
            for n in range(3):
                connection.drain_events(timeout=5)
                assert got[n].payload == {"n": n}
                got[n].ack()
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.1)


def test_a_consumer_gets_no_more_than_it_prefetches(connection: Connection) -> None:
    fill(connection, "line", 5)
    got: list[Any] = []
    with connection.channel() as channel:
        channel.basic_qos(0, 2, False)
        queue = Queue("line")(channel)
        with Consumer(channel, [queue], callbacks=[lambda body, message: got.append(message)]):
            for _ in range(2):
                connection.drain_events(timeout=5)
            with pytest.raises(socket.timeout):
                connection.drain_events(timeout=0.2)
            got[0].ack()
            connection.drain_events(timeout=5)
    assert [message.payload["n"] for message in got] == [0, 1, 2]


def test_a_consumer_without_acknowledgements_leaves_nothing_behind(connection: Connection) -> None:
    fill(connection, "line", 5)
    got: list[int] = []
    with connection.channel() as channel:
        queue = Queue("line")(channel)
        consumer = Consumer(
            channel, [queue], no_ack=True, callbacks=[lambda body, message: got.append(body["n"])]
        )
        with consumer:
            while len(got) < 5:
                connection.drain_events(timeout=5)
    assert got == [0, 1, 2, 3, 4]
    with connection.channel() as channel:
        assert Queue("line")(channel).get() is None
        assert channel.client.hlen("cq:msg") == 0


def test_several_queues_take_turns(connection: Connection) -> None:
    fill(connection, "flood", 50)
    fill(connection, "drop", 1)
    got: list[str] = []

    def note(body: Any, message: Any) -> None:
        got.append(message.delivery_info["routing_key"])
        message.ack()

    with connection.channel() as channel:
        queues = [Queue("flood")(channel), Queue("drop")(channel)]
        with Consumer(channel, queues, callbacks=[note]):
            while "drop" not in got:
                connection.drain_events(timeout=5)
    assert len(got) <= 5


def test_a_cancelled_consumer_gives_back_what_it_did_not_deliver(connection: Connection) -> None:
    fill(connection, "line", 4)
    got: list[Any] = []
    with connection.channel() as channel:
        queue = Queue("line")(channel)
        with Consumer(channel, [queue], callbacks=[lambda body, message: got.append(message)]):
            connection.drain_events(timeout=5)
        # another channel gets all but what this one still holds
        with connection.channel() as other:
            rest = []
            while (message := Queue("line")(other).get()) is not None:
                rest.append(message.payload["n"])
                message.ack()
        assert rest == [1, 2, 3]
        got[0].ack()
    with connection.channel() as channel:
        assert Queue("line")(channel).get() is None


def test_an_acknowledgement_after_the_channel_closed_still_counts_where_no_task_runs_no_more(
    connection: Connection,
) -> None:
    fill(connection, "line", 1)
    with connection.channel() as channel:
        message = Queue("line")(channel).get()
        assert message is not None
    # closing gave it back: the late acknowledgement counts nothing, and breaks nothing
    with connection.channel() as channel:
        again = Queue("line")(channel).get()
        assert again is not None
        again.ack()
        assert Queue("line")(channel).get() is None


@pytest.mark.parametrize("size", [0, 1, 70_000, 5_000_000])
def test_a_body_of_any_size_passes_unchanged(connection: Connection, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    queue = connection.SimpleQueue("simple")
    queue.put(body, content_type="application/octet-stream", content_encoding="binary")
    message = queue.get(timeout=10)
    assert message.body == body
    message.ack()
    queue.close()


@pytest.mark.parametrize("compression", ["zlib", "bzip2"])
def test_a_compressed_body_passes(connection: Connection, compression: str) -> None:
    queue = connection.SimpleQueue("simple")
    queue.put({"text": "x" * 10_000}, compression=compression)
    message = queue.get(timeout=5)
    assert message.payload == {"text": "x" * 10_000}
    message.ack()
    queue.close()


def test_a_message_got_by_hand_is_of_the_queue_that_was_asked(connection: Connection) -> None:
    # given a channel that has taken more of one queue than it has delivered
    fill(connection, "theirs", 3)
    fill(connection, "asked", 1)
    with connection.channel() as channel:
        channel.basic_qos(0, 1, False)
        consumer = Consumer(channel, [Queue("theirs")], on_message=lambda message: None)
        consumer.consume()
        channel.consumer.exchange(["theirs"], count=3, run=1, was_idle=False)
        assert channel.consumer.deliveries.ready == 3
        # when another queue is asked by hand
        queue = Queue("asked")(channel)
        queue.declare()
        first, second = queue.get(), queue.get()
        # then its message comes, and none of the other queue's
        assert first is not None
        assert first.delivery_info["queue"] == "asked"
        assert second is None
        assert channel.consumer.deliveries.ready == 3
        first.ack()
        consumer.cancel()


def test_closed_channels_leave_no_socket_open(connection: Connection, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as looker:

        def open_now() -> int:
            return len(looker.client_list(_type="normal")) + len(looker.client_list(_type="pubsub"))

        connection.connect()
        fill(connection, "line", 1)
        before = open_now()
        # given channels that have taken, published and listened, and that nothing collects
        gc.disable()
        try:
            for _ in range(5):
                channel = connection.channel()
                consumer = Consumer(channel, [Queue("line")], on_message=lambda message: None)
                consumer.consume()
                Producer(channel).publish({}, routing_key="line")
                connection.drain_events(timeout=5)
                # when each is closed
                channel.close()
            # then none of their connections stays
            wait_until(lambda: open_now() <= before, 5, lambda: f"{before}, not {open_now()}")
        finally:
            gc.enable()


def test_a_number_pushed_into_a_list_takes_no_message_of_another_queue(
    connection: Connection, redis_url: str
) -> None:
    got: list[Any] = []

    def handle(body: Any, message: Any) -> None:
        got.append(body)
        message.ack()

    # given messages of a queue, plain, delayed and in a sequence; their ids in another one's list
    eta = datetime.now(UTC) + timedelta(hours=1)
    producer = Producer(connection)
    for n, headers in enumerate(({}, {"eta": eta.isoformat()}, {"cqrs_sequence": "s"}, {})):
        producer.publish({"n": n}, routing_key="theirs", headers=headers)
    with redis.Redis.from_url(redis_url) as client, connection.channel() as channel:
        theirs = channel.queue
        Queue("other")(channel).declare()
        client.lpush("other", 1, 2, 3)
        # and a message that was moved by hand, and is nowhere else
        assert client.lrem("theirs", 1, "4") == 1
        client.lpush("other", 4)
        # when the other queue is consumed
        with Consumer(
            channel,
            [Queue("other")],
            callbacks=[handle],
        ):
            connection.drain_events(timeout=5)
            # then what was moved comes, and the numbers are dead letters with their reason
            assert got == [{"n": 3}]
            letters = list(theirs.letters.all("other"))
            assert [letter.payload for letter in letters] == [b"1", b"2", b"3"]
            assert [json.loads(letter.why) for letter in letters] == [
                {
                    "reason": "a bare number",
                    "error": "it is the id of a message of the queue theirs",
                }
            ] * 3
    # and the messages are where they were
    count = theirs.count("theirs")
    assert (count.ready, count.in_sequences, count.delayed) == (2, 1, 1)
    with (
        connection.channel() as channel,
        Consumer(
            channel,
            [Queue("theirs")],
            callbacks=[handle],
        ),
    ):
        for _ in range(2):
            connection.drain_events(timeout=5)
    assert got == [{"n": 3}, {"n": 0}, {"n": 2}]
