"""`celery -A app cqrs move-queues` switches a deployment over and back, and loses nothing."""

from __future__ import annotations

import json
import os
import random
import sys
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import celery
import pytest
import redis
from kombu import Exchange, Producer

from cqrs_celery.cli import moving
from cqrs_celery.cli.moving import Mover
from cqrs_celery.queue.values import Destination, LetterPolicy, bury, later
from cqrs_celery.transport import TRANSPORT
from tests.integration.test_cli_queues import application, json_of, queue_of, run_cli, send
from tests.nodes import ProcessNode
from tests.queues import Worker
from tests.waiting import wait_until

STOCK = "redis"

TEXTS = ["plain", "grüße 你好 🦉", 'quotes " and \\ and \n', "", "x" * 20_000]


@contextmanager
def both(url: str, prefix: str = "") -> Iterator[tuple[celery.Celery, celery.Celery]]:
    """Give the same application on stock Redis, and on the reliable queue."""
    options = {"global_keyprefix": prefix}
    with (
        application(url, STOCK, broker_transport_options=options) as stock,
        application(url, broker_transport_options=options) as ours,
    ):
        yield stock, ours


@pytest.fixture
def apps(redis_url: str) -> Iterator[tuple[celery.Celery, celery.Celery]]:
    with both(redis_url) as apps:
        yield apps


@contextmanager
def channel_of(app: celery.Celery) -> Iterator[Any]:
    with app.connection_for_write() as connection:
        yield connection.channel()


def drain(app: celery.Celery, *queues: str) -> list[Any]:
    """Take everything that is ready, and return each message's arguments, or else its body."""
    found = []
    with channel_of(app) as channel:
        for queue in queues or ("orders",):
            while message := channel.basic_get(queue):
                channel.basic_ack(message.delivery_tag)
                body = channel.message_to_python(message).decode()
                found.append(body[0][0] if isinstance(body, list) and body else body)
    return found


@contextmanager
def unacknowledged(app: celery.Celery, count: int, *queues: str) -> Iterator[list[Any]]:
    """Take messages with a stock worker that is lost while the block runs."""
    connection = app.connection_for_read()
    channel = connection.channel()
    messages = []
    for queue in queues or ("orders",):
        messages += [channel.basic_get(queue) for _ in range(count)]
    assert all(messages)
    # What it would do on its own at its end is what a lost one never does.
    channel.qos._delivered.clear()
    channel.qos._on_collect.cancel()
    try:
        yield messages
    finally:
        connection.close()


def moved(app: celery.Celery, *arguments: str) -> dict[str, dict[str, Any]]:
    """Move queues, and return what was moved by queue."""
    answer = json_of(app, "move-queues", *arguments)
    assert answer["is_done"] is ("--yes" in arguments)
    return {row.pop("queue"): row for row in answer["queues"]}


def snapshot(client: Any) -> dict[bytes, Any]:
    """Return everything that is stored."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"hash": client.hgetall,
        b"set": lambda key: sorted(client.smembers(key)),
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    keys = (key for key in client.scan_iter() if not key.startswith(b"cq:dedup"))
    return {key: readers[client.type(key)](key) for key in keys}


# ---------------------------------------------------------------- from stock


@pytest.mark.parametrize("prefix", ["", "{shop}[*]."])
def test_what_stock_producers_sent_and_stock_workers_left_comes_in_order(
    redis_url: str, prefix: str
) -> None:
    with both(redis_url, prefix) as (stock, ours):
        # given ten messages, of which a lost stock worker has taken four
        send(stock, *range(10))
        with unacknowledged(stock, 4):
            # when the queue is moved
            expected = {"messages": 10, "unacked": 4, "delayed": 0, "sequenced": 0}
            assert moved(ours, "--from-stock") == {"orders": expected}
            assert moved(ours, "--from-stock", "--yes") == {"orders": expected}
        # then all are there, in the order in which they were sent
        assert drain(ours) == list(range(10))
        assert moved(ours, "--from-stock") == {}
        with redis.Redis.from_url(redis_url) as client:
            assert not client.keys("*unacked*")
            assert not client.keys("*aside*")


def test_a_dry_run_is_the_default_and_changes_nothing(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given something of everything, in either form
    stock, ours = apps
    send(stock, 1, 2, 3)
    send(stock, 4, countdown=60)
    send(ours, 5, headers={"cqrs_sequence": "a"})
    send(ours, 6, countdown=60)
    with unacknowledged(stock, 1):
        before = snapshot(data)
        # when both moves are tried
        for direction in ("--from-stock", "--to-stock"):
            result = run_cli(ours, "move-queues", direction)
            assert "Nothing was changed" in result.output
            # then everything is as it was
            assert snapshot(data) == before


def test_the_table_says_what_would_happen(apps: tuple[celery.Celery, celery.Celery]) -> None:
    stock, ours = apps
    send(stock, 1, 2)
    send(stock, 3, countdown=60)
    lines = run_cli(ours, "move-queues", "--from-stock").output.splitlines()
    assert lines[0].split() == ["queue", "messages", "unacked", "delayed", "sequenced"]
    assert lines[2].split() == ["orders", "3", "0", "1", "0"]


def test_etas_wait_in_redis_and_sequences_stay_in_order_after_the_move(
    apps: tuple[celery.Celery, celery.Celery],
) -> None:
    # given messages with an ETA, taken by a stock worker or not, past or to come, and sequences
    stock, ours = apps
    send(stock, 0, countdown=60)
    send(stock, 1)
    send(stock, 2, countdown=60)
    send(stock, 3, countdown=-60)
    for number in (4, 5, 6, 7):
        send(stock, number, headers={"cqrs_sequence": f"s-{number % 2}"})
    send(stock, 8, countdown=60, headers={"cqrs_sequence": "s-0"})
    with unacknowledged(stock, 2):
        expected = {"messages": 9, "unacked": 2, "delayed": 3, "sequenced": 5}
        assert moved(ours, "--from-stock") == {"orders": expected}
        # when they are moved
        assert moved(ours, "--from-stock", "--yes") == {"orders": expected}
    # then none comes before its time, and one of each sequence at a time
    (row,) = json_of(ours, "queues")
    assert (row["ready"], row["waiting"], row["delayed"]) == (4, 2, 3)
    with queue_of(ours) as queue:
        worker = Worker(queue, "anna", ["orders"])  # type: ignore[arg-type]
        taken = worker.take()
        assert [one.sequence for one in taken] == ["", "", "s-0", "s-1"]
        queue.leave("anna")
    assert drain(ours) == [1, 3, 4, 5, 6, 7]


def test_priorities_are_kept_and_every_step_is_seen_at_once(
    apps: tuple[celery.Celery, celery.Celery],
) -> None:
    stock, ours = apps
    for priority in (9, 6, 3, 0):
        send(stock, priority, priority + 100, priority=priority)
    with unacknowledged(stock, 3):
        moved(ours, "--from-stock", "--yes")
    assert drain(ours) == [0, 100, 3, 103, 6, 106, 9, 109]


def test_bodies_come_as_they_were_sent(apps: tuple[celery.Celery, celery.Celery]) -> None:
    stock, ours = apps
    binary = bytes(range(256))
    for text in TEXTS:
        send(stock, text)  # type: ignore[arg-type]
    with stock.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(binary, routing_key="orders", content_type="application/data",
                         content_encoding="binary")  # fmt: skip
        with unacknowledged(stock, 3):
            moved(ours, "--from-stock", "--yes")
    assert drain(ours) == [*TEXTS, binary]


def test_what_a_topic_sent_to_several_queues_goes_back_to_all_of_them(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given a message for two queues, which a stock worker took from both
    stock, ours = apps
    with channel_of(stock) as channel:
        for queue in stock.amqp.queues.values():
            queue(channel).declare()
        things = Exchange("things", type="topic")
        Producer(channel, things).publish([[7], {}, {}], routing_key="order.x")
    with unacknowledged(stock, 1, "mail", "ledger"):
        # given that stock itself keeps them under one tag
        assert data.hlen("unacked") == 1
        assert set(moved(ours, "--from-stock", "--yes")) == {"mail", "ledger"}
    assert drain(ours, "mail", "ledger") == [7, 7]


def test_unacked_messages_that_cannot_be_read_stay_and_are_reported(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    stock, ours = apps
    send(stock, 1)
    with unacknowledged(stock, 1):
        data.hset("unacked", mapping={"a": "nonsense", "b": '[{}, "", "orders"]',
                                      "c": '[{"properties": {}}, "gone", "x"]'})  # fmt: skip
        result = run_cli(ours, "move-queues", "--from-stock", "--yes")
    assert "3 unacked messages stay" in result.output
    assert data.hlen("unacked") == 3
    assert drain(ours) == [1]


def test_a_stock_queue_with_an_expiry_does_not_end_with_what_it_holds(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    stock, ours = apps
    send(stock, 1)
    data.pexpire("orders", 600_000)
    moved(ours, "--from-stock", "--yes")
    assert data.pttl("orders") == -1


def test_only_the_named_queues_are_moved_and_an_unknown_one_is_refused(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    stock, ours = apps
    send(stock, 1)
    send(stock, 2, queue="other")
    with unacknowledged(stock, 1, "orders", "other"):
        assert list(moved(ours, "--from-stock", "--queue", "other", "--yes")) == ["other"]
        assert data.hlen("unacked") == 1
        result = run_cli(ours, "move-queues", "--from-stock", "--queue", "odrers")
    assert result.exit_code == 2
    assert "no queue odrers is known; there are: ledger, mail, orders, other" in result.output


def test_a_direction_must_be_said(apps: tuple[celery.Celery, celery.Celery]) -> None:
    result = run_cli(apps[1], "move-queues", "--yes")
    assert result.exit_code == 2
    assert "use --from-stock or --to-stock" in result.output


# ---------------------------------------------------------------- to stock


@pytest.mark.parametrize("prefix", ["", "{shop}[*]."])
def test_stock_workers_get_everything_in_order_after_the_move_back(
    redis_url: str, prefix: str
) -> None:
    with both(redis_url, prefix) as (stock, ours):
        # given more messages than are moved at a time, some of a stock producer between them
        send(ours, *range(250))
        send(stock, *range(250, 260))
        send(ours, *range(260, 450))
        expected = {"messages": 450, "delayed": 0, "expired": 0, "blocked": 0, "dead": 0}
        assert moved(ours, "--to-stock") == {"orders": expected}
        # when they are moved
        assert moved(ours, "--to-stock", "--yes") == {"orders": expected}
        # then stock has them, in order, and nothing else is left
        assert drain(stock) == list(range(450))
        with redis.Redis.from_url(redis_url) as client:
            names = {key.decode().removeprefix(prefix) for key in client.scan_iter()}
        kept = {name for name in names if not name.startswith(("cq:dedup:", "_kombu."))}
        assert kept == {"cq:id", "cq:queues"}


def test_moving_twice_changes_nothing_more(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    stock, ours = apps
    send(ours, *range(5))
    moved(ours, "--to-stock", "--yes")
    before = data.lrange("orders", 0, -1)
    assert moved(ours, "--to-stock", "--yes")["orders"]["messages"] == 5
    assert moved(ours, "--from-stock", "--yes")["orders"]["messages"] == 5
    assert data.lrange("orders", 0, -1) == before
    assert drain(stock) == list(range(5))


def test_a_stock_message_looks_as_stock_writes_it(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given the same task sent by stock, and by ours and then moved
    stock, ours = apps
    send(stock, 1, task_id="same")
    (expected,) = map(json.loads, data.lrange("orders", 0, -1))
    data.delete("orders")
    send(ours, 1, task_id="same")
    moved(ours, "--to-stock", "--yes")
    (found,) = map(json.loads, data.lrange("orders", 0, -1))
    # then they differ in nothing but the tag, and the time of sending
    for message in (expected, found):
        assert len(message["properties"].pop("delivery_tag")) == 36
        message["properties"].pop("reply_to")
    del found["properties"]["timestamp"]
    assert found == expected


def test_a_sequence_takes_the_place_of_its_token_whole(
    apps: tuple[celery.Celery, celery.Celery],
) -> None:
    stock, ours = apps
    send(ours, 0)
    for number in range(1, 500):
        send(ours, number, headers={"cqrs_sequence": "long"})
    send(ours, 500)
    send(ours, 501, 502, headers={"cqrs_sequence": "short"})
    assert moved(ours, "--to-stock")["orders"]["messages"] == 503
    assert moved(ours, "--to-stock", "--yes")["orders"]["messages"] == 503
    assert drain(stock) == list(range(503))


def test_a_round_trip_keeps_sequences_delays_priorities_and_order(
    apps: tuple[celery.Celery, celery.Celery],
) -> None:
    _, ours = apps
    send(ours, 1, 2)
    send(ours, 3, 4, headers={"cqrs_sequence": "s"})
    send(ours, 5, priority=6)
    send(ours, 6, countdown=60)
    send(ours, 7, countdown=90, headers={"cqrs_sequence": "s"})
    before = json_of(ours, "queues")[0]
    moved(ours, "--to-stock", "--yes")
    moved(ours, "--from-stock", "--yes")
    after = json_of(ours, "queues")[0]
    assert before.pop("oldest_s") is not None
    assert after.pop("oldest_s") is not None
    assert after == before
    delayed = json_of(ours, "queues", "--delayed")
    assert [(one["sequence"], round(one["due_in_s"], -1)) for one in delayed] == [
        ("", 60), ("s", 90),
    ]  # fmt: skip
    assert drain(ours) == [1, 2, 3, 4, 5]


def test_delayed_messages_go_to_the_tail_with_their_eta(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given messages that wait, one sent with a countdown, a sequence that is retried
    _, ours = apps
    send(ours, 2, countdown=60)
    send(ours, 3, countdown=30)
    send(ours, 4, 5, headers={"cqrs_sequence": "s"})
    with queue_of(ours) as queue:
        worker = Worker(queue, "anna", ["orders"])  # type: ignore[arg-type]
        worker.end(later, worker.take(1), 90_000)
        queue.leave("anna")
    send(ours, 1)
    expected = {"messages": 5, "delayed": 4, "expired": 0, "blocked": 0, "dead": 0}
    assert moved(ours, "--to-stock") == {"orders": expected}
    # when they are moved
    assert moved(ours, "--to-stock", "--yes") == {"orders": expected}
    # then each has its time, by which a stock worker waits
    messages = [json.loads(raw) for raw in reversed(data.lrange("orders", 0, -1))]
    waits = [_wait_of(message) for message in messages]
    assert waits[0] == 0
    assert [round(wait, -1) for wait in waits[1:]] == [30, 60, 90, 90]
    assert not [key for key in data.keys("cq:*") if key.startswith((b"cq:delayed", b"cq:due"))]
    assert not data.exists("cq:msg", "cq:seqs:orders")


def _wait_of(message: dict[str, Any]) -> float:
    eta = message["headers"]["eta"]
    return (datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds() if eta else 0


def test_bodies_survive_the_way_back(apps: tuple[celery.Celery, celery.Celery]) -> None:
    stock, ours = apps
    binary = bytes(range(256))
    for text in TEXTS:
        send(ours, text)  # type: ignore[arg-type]
    with ours.connection_for_write() as connection:
        connection.Producer().publish(binary, routing_key="orders",
                                      content_type="application/data",
                                      content_encoding="binary")  # fmt: skip
    moved(ours, "--to-stock", "--yes")
    assert drain(stock) == [*TEXTS, binary]


def test_a_body_shared_by_several_queues_is_in_each_of_their_messages(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given an event for two queues, as the event store delivers it
    stock, ours = apps
    with queue_of(ours) as queue:
        head = json.dumps({
            "content-encoding": "utf-8", "content-type": "application/json",
            "properties": {"delivery_info": {}}, "headers": {"task": "t"},
        })  # fmt: skip
        to = [Destination(name, head, "s-1") for name in ("mail", "ledger")]
        queue.publish(to, body='[[{"name": "grüße"}], {}, {}]')
    moved(ours, "--to-stock", "--yes")
    assert drain(stock, "mail", "ledger") == [{"name": "grüße"}] * 2
    assert not data.exists("cq:body", "cq:refs", "cq:msg")


def test_dead_letters_and_what_they_block_stay(apps: tuple[celery.Celery, celery.Celery]) -> None:
    stock, ours = apps
    with queue_of(ours) as queue:
        queue.letters.set_policy("orders", LetterPolicy())
        send(ours, 1, 2, 3, headers={"cqrs_sequence": "s"})
        worker = Worker(queue, "anna", ["orders"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(1), "{}")
        queue.leave("anna")
        send(ours, 4)
        found = moved(ours, "--to-stock", "--yes")
        expected = {"messages": 1, "delayed": 0, "expired": 0, "blocked": 2, "dead": 1}
        assert found == {"orders": expected}
        assert drain(stock) == [4]
        # and go on when they are redriven
        (letter,) = queue.letters.all("orders")
        queue.letters.redrive("orders", letter.id)
    moved(ours, "--to-stock", "--yes")
    assert drain(stock) == [1, 2, 3]


def test_what_has_expired_is_deleted_and_what_is_unreadable_becomes_a_dead_letter(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    stock, ours = apps
    with queue_of(ours) as queue:
        send(ours, 1)
        queue.publish([Destination("orders", "no message")])
        queue.publish([Destination("orders", "old")], ttl_ms=1)
        data.hset("cq:until", "3", 1)
        found = moved(ours, "--to-stock", "--yes")["orders"]
        assert (found["messages"], found["expired"], found["dead"]) == (1, 1, 1)
        (letter,) = queue.letters.all("orders")
        assert "unreadable envelope" in letter.why
    assert drain(stock) == [1]


def test_a_living_worker_is_named_and_nothing_is_moved(
    apps: tuple[celery.Celery, celery.Celery], data: Any
) -> None:
    # given a consumer that holds two of three messages
    _, ours = apps
    send(ours, 1, 2, 3)
    with queue_of(ours) as queue:
        worker = Worker(queue, "anna@host", ["orders"])  # type: ignore[arg-type]
        worker.take(2)
    before = snapshot(data)
    # when the queues are to be moved, then it is named
    result = run_cli(ours, "move-queues", "--to-stock", "--yes")
    assert result.exit_code == 1
    assert "stop these workers first: anna@host holds 2 and its lease ends in" in result.output
    assert snapshot(data) == before
    # and the dry run says so too
    dry = run_cli(ours, "move-queues", "--to-stock")
    assert dry.exit_code == 0
    assert "--yes would be refused: anna@host" in dry.output


def test_what_a_lost_worker_held_is_given_back_first(redis_url: str) -> None:
    # given messages of a consumer whose lease has ended
    options = {"lease_s": 1.0}
    with (
        application(redis_url, broker_transport_options=options) as ours,
        application(redis_url, STOCK) as stock,
    ):
        send(ours, *range(5))
        with queue_of(ours) as queue:
            worker = Worker(queue, "anna@host", ["orders"])  # type: ignore[arg-type]
            worker.take(3)
            queue.client.zadd(queue.key("consumers"), {"anna@host": 1})
        # when the queues are moved
        result = run_cli(ours, "move-queues", "--to-stock", "--yes")
        # then it was given one lease's time to show itself
        assert "waiting 1 s for a sign of life of anna@host" in result.output
        assert drain(stock) == list(range(5))


# ---------------------------------------------------------------- crashes


class Crash(Exception):
    """What ends a move in the middle."""


def crash_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> list[int]:
    """Let a move crash after some scripts; each is one atomic step. Returns how many are left."""
    left = [steps]
    run = Mover._run

    def counted(self: Mover, *arguments: Any) -> Any:
        if not left[0]:
            raise Crash
        left[0] -= 1
        return run(self, *arguments)

    monkeypatch.setattr(Mover, "_run", counted)
    monkeypatch.setattr(moving, "BATCH", 2)
    return left


def until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, app: celery.Celery, directions: Callable[[], str]
) -> int:
    """Move queues, crash after one step more each time, until it is done; returns how often."""
    for steps in range(1, 200):
        with monkeypatch.context() as patch:
            crash_after(patch, steps)
            result = run_cli(app, "move-queues", directions(), "--yes")
        if not isinstance(result.exception, Crash):
            assert result.exit_code == 0, result.output
            return steps
    raise AssertionError("it is never done")


def fill(stock: celery.Celery, ours: celery.Celery) -> None:
    """Send 21 messages of every kind, numbered in the order in which they come."""
    send(stock, 0, 1)
    send(ours, 2)
    send(ours, *range(3, 9), headers={"cqrs_sequence": "a"})
    send(stock, 9, 10)
    send(ours, *range(11, 14), headers={"cqrs_sequence": "b"})
    send(stock, 14)
    send(ours, 15, 16, priority=6)
    send(stock, 17, 18, priority=9)
    send(ours, 19, countdown=60)
    send(ours, 20, countdown=70)


def test_a_crash_after_any_step_to_stock_loses_and_doubles_nothing(
    apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = apps
    fill(stock, ours)
    # when the move crashes again and again, each time a step later
    crashes = until_it_is_done(monkeypatch, ours, lambda: "--to-stock")
    # then all is there once, in order
    assert crashes > 3
    assert drain(stock) == [*range(15), 19, 20, 15, 16, 17, 18]


def test_a_crash_after_any_step_from_stock_loses_and_doubles_nothing(
    apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock, ours = apps
    fill(stock, ours)
    moved(ours, "--to-stock", "--yes")
    with unacknowledged(stock, 7):
        crashes = until_it_is_done(monkeypatch, ours, lambda: "--from-stock")
    assert crashes > 3
    (row,) = json_of(ours, "queues")
    assert (row["ready"], row["waiting"], row["delayed"]) == (12, 7, 2)
    # and a sequence's next comes at the tail, when the one before it is done
    found = drain(ours)
    assert sorted(found) == list(range(19))
    others = [n for n in found if not 3 < n < 9 and n not in (12, 13)]
    assert others == [0, 1, 2, 3, 9, 10, 11, *range(14, 19)]
    assert [n for n in found if 3 <= n < 9] == list(range(3, 9))
    assert [n for n in found if 11 <= n < 14] == list(range(11, 14))


@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_mind_in_the_middle_loses_and_doubles_nothing(
    seed: int, apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given moves in either direction that crash, now one, now the other
    stock, ours = apps
    fill(stock, ours)
    chance = random.Random(seed)
    directions = ["--to-stock", "--from-stock"]
    until_it_is_done(monkeypatch, ours, lambda: chance.choice(directions))
    # when one of them comes to its end
    moved(ours, "--to-stock", "--yes")
    # then all is there once, in order within each priority
    assert sorted(found := drain(stock)) == list(range(21))
    assert [n for n in found if n < 15] == list(range(15))


@pytest.mark.parametrize("steps", range(2, 9))
def test_the_other_way_finds_what_an_unfinished_move_has_set_aside(
    steps: int, apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a move from stock that has ended in the middle
    stock, ours = apps
    fill(stock, ours)
    moved(ours, "--to-stock", "--yes")
    with monkeypatch.context() as patch:
        crash_after(patch, steps)
        assert isinstance(run_cli(ours, "move-queues", "--from-stock", "--yes").exception, Crash)
    # when the queues are moved back
    moved(ours, "--to-stock", "--yes")
    # then stock reads all of it
    found = drain(stock)
    assert sorted(found) == list(range(21))
    assert [n for n in found if n < 15] == list(range(15))


@pytest.mark.parametrize("direction", ["--to-stock", "--from-stock"])
def test_what_others_take_while_it_moves_is_not_moved_too(
    direction: str, apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a worker that comes meanwhile, and takes one just before each step
    stock, ours = apps
    send(stock if direction == "--from-stock" else ours, *range(20))
    send(stock, 20, headers={"cqrs_sequence": "s"})
    run = Mover._run
    with queue_of(ours) as queue:

        def with_others(self: Mover, *arguments: Any) -> Any:
            Worker(queue, "anna", ["orders"]).take(1)  # type: ignore[arg-type]
            return run(self, *arguments)

        monkeypatch.setattr(Mover, "_run", with_others)
        monkeypatch.setattr(moving, "BATCH", 4)
        monkeypatch.setattr(moving, "PATIENCE", 10)
        result = run_cli(ours, "move-queues", direction, "--yes")
        # then it gives up, or comes to its end, and nothing is there twice or lost
        assert result.exit_code in (0, 1), result.output
        assert queue.in_flight("anna")
        monkeypatch.undo()
        queue.leave("anna")
    moved(ours, "--to-stock", "--yes")
    assert sorted(drain(stock)) == list(range(21))


def test_what_others_send_while_it_moves_comes_behind(
    apps: tuple[celery.Celery, celery.Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    # given producers that go on
    stock, ours = apps
    send(ours, *range(10))
    numbers, run = iter(range(10, 13)), Mover._run

    def with_others(self: Mover, *arguments: Any) -> Any:
        send(stock, *[number for number in [next(numbers, None)] if number])
        return run(self, *arguments)

    monkeypatch.setattr(Mover, "_run", with_others)
    monkeypatch.setattr(moving, "BATCH", 4)
    moved(ours, "--to-stock", "--yes")
    assert drain(stock) == list(range(13))


# ---------------------------------------------------------------- real processes


class MoveNode(ProcessNode):
    """`celery -A app cqrs move-queues … --yes` in a process of its own."""

    def __init__(self, directory: Path, url: str, *arguments: str, **options: Any) -> None:
        super().__init__("move", directory)
        self._arguments = arguments
        (directory / "moving_shop.py").write_text(
            "from celery import Celery\n"
            f"app = Celery('shop', broker={url!r})\n"
            f"app.conf.update(broker_transport={TRANSPORT!r}, task_default_queue='orders',\n"
            f"                broker_transport_options={options!r})\n"
        )

    @property
    def id(self) -> str:
        return "move"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "celery", "-A", "moving_shop", "cqrs", "move-queues"]
        return [*command, *self._arguments, "--yes"]

    def environment(self) -> dict[str, str]:
        paths = [str(self.directory), os.environ.get("PYTHONPATH", "")]
        return {**super().environment(), "PYTHONPATH": os.pathsep.join(paths)}

    def is_ready(self) -> bool:
        return True

    def wait(self) -> str:
        """Wait for its end, and return what it printed."""
        wait_until(lambda: self.status == "exited", 30, self.log_tail)
        return self.logs_since_start()


@pytest.fixture
def move(redis_url: str, tmp_path: Path) -> Iterator[Callable[..., MoveNode]]:
    nodes: list[MoveNode] = []

    def start(*arguments: str, **options: Any) -> MoveNode:
        nodes.append(MoveNode(tmp_path, redis_url, *arguments, **options))
        nodes[-1].start()
        return nodes[-1]

    yield start
    for node in nodes:
        node.teardown()


def has_moved(data: Any, aside: str, target: int) -> bool:
    """Watch a list, for it is there for some hundred milliseconds only."""
    return any(data.llen(aside) >= target for _ in range(1_000))


@pytest.mark.parametrize("seed", range(3))
def test_a_move_that_is_killed_at_random_loses_and_doubles_nothing(
    seed: int,
    apps: tuple[celery.Celery, celery.Celery],
    data: Any,
    move: Callable[..., MoveNode],
) -> None:
    # given a long queue
    _, ours = apps
    with queue_of(ours) as queue:
        head = json.dumps({"content-encoding": "utf-8", "content-type": "application/json",
                           "properties": {}, "headers": {}})  # fmt: skip
        for start in range(0, 20_000, 1_000):
            numbers = range(start, start + 1_000)
            queue.publish([Destination("orders", f"{head}\n{n}") for n in numbers])
    # when it is killed as soon as it has moved some, again and again, a part still to be moved
    aside = "cq:aside:orders\x1f0"
    for target in sorted(random.Random(seed).sample(range(1, 15_000), 3)):
        node = move("--to-stock")
        wait_until(partial(has_moved, data, aside, target), 30, node.log_tail)
        node.kill()
        assert data.exists(aside)
    # and done once more
    move("--to-stock").wait()
    # then all is there once, in order
    found = [b64decode(json.loads(raw)["body"]) for raw in reversed(data.lrange("orders", 0, -1))]
    assert [int(body) for body in found] == list(range(20_000))
    assert not data.exists("cq:msg")


def test_a_worker_that_shows_itself_while_it_is_waited_for_is_not_robbed(
    redis_url: str, move: Callable[..., MoveNode]
) -> None:
    # given a consumer whose lease has ended, since Redis was away
    with application(redis_url) as ours, queue_of(ours) as queue:
        send(ours, *range(5))
        worker = Worker(queue, "anna@host", ["orders"])  # type: ignore[arg-type]
        worker.take(3)
        queue.client.zadd(queue.key("consumers"), {"anna@host": 1})
        node = move("--to-stock", lease_s=60.0)
        wait_until(lambda: "waiting 60 s" in node.logs(), 20, node.log_tail)
        # when it beats
        queue.beat("anna@host", 60_000)
        # then it keeps what it holds
        assert "stop these workers first: anna@host holds 3" in node.wait()
        assert len(queue.in_flight("anna@host")) == 3


SHOP = """
    import redis
    from celery import Celery

    app = Celery("shop", broker={url!r})
    app.conf.update(broker_transport={transport!r}, task_acks_late=True,
                    task_default_queue="orders", worker_prefetch_multiplier=4)
    data = redis.Redis.from_url({url!r})

    @app.task(name="shop.pack")
    def pack(number):
        data.rpush("seen", number)
        if number in {hangs!r}:
            while True:
                data.blpop("never", 1)
        data.rpush("done", number)
"""

ALONE = ["--without-mingle", "--without-gossip"]


def test_real_workers_before_and_after_finish_every_task_there_and_back(
    redis_url: str,
    apps: tuple[celery.Celery, celery.Celery],
    data: Any,
    move: Callable[..., MoveNode],
    worker_factory: Any,
) -> None:
    stock, ours = apps
    options: dict[str, Any] = {"queues": ["orders"], "arguments": ALONE}

    def done() -> list[int]:
        return [int(number) for number in data.lrange("done", 0, -1)]

    # given a stock worker that is killed while it runs the fourth task and holds more
    source = SHOP.format(url=redis_url, transport=STOCK, hangs={3})
    worker = worker_factory(source, module="stock_shop", **options)
    send(stock, *range(10))
    wait_until(lambda: data.hlen("unacked") == 4, 15, worker.log_tail)
    wait_until(lambda: data.lrange("seen", -1, -1) == [b"3"], 15, worker.log_tail)
    worker.kill()
    # when its queues are moved
    assert "orders         7        4        0          0" in move("--from-stock").wait()
    # then ours does all, in order; the one that ran comes twice
    source = SHOP.format(url=redis_url, transport=TRANSPORT, hangs={13})
    worker = worker_factory(source, module="our_shop", **options)
    send(ours, *range(10, 20))
    wait_until(lambda: data.lrange("seen", -1, -1) == [b"13"], 15, worker.log_tail)
    assert done() == list(range(13))
    wait_until(lambda: data.hlen("cq:msg") == 7, 15, "the twelfth's acknowledgement to be sent")
    # and given that ours is killed too; when the queues are moved back
    worker.kill()
    data.zadd("cq:consumers", dict.fromkeys(data.zrange("cq:consumers", 0, -1), 1))
    assert "orders         7        0" in move("--to-stock", lease_s=1.0).wait()
    # then stock does the rest
    source = SHOP.format(url=redis_url, transport=STOCK, hangs=set())
    worker = worker_factory(source, module="stock_shop_again", **options)
    wait_until(lambda: len(done()) == 20, 15, worker.log_tail)
    assert done() == list(range(20))
    seen = Counter(int(number) for number in data.lrange("seen", 0, -1))
    assert {number for number, times in seen.items() if times > 1} == {3, 13}
