"""The oldest event that is not handled is found without reading the backlog."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, cast

import pytest
import redis

from cqrs_celery.backends.redis.unhandled import OldestUnhandled

EVENT = b'[[{"stream":"shop:Order:7","position":%d,"version":1}'

#: The head of an event that is retried, and what comes behind it.
RETRIED = b'@0%d\n{"headers":{"task":"t","cqrs_position":%d,"retries":1}}\n[["anything"],{},{}]'


class Bodies:
    """Bodies of events and of other messages, as publishing and settling leave them."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        self.positions: dict[int, int | None] = {}
        self.last = 0

    def publish(self, position: int | None) -> None:
        self.last += 1
        body = EVENT % position if position else b"{}"
        self.client.hset("cq:refs", str(self.last), 2)
        self.client.hset("cq:body", str(self.last), body)
        self.client.set("cq:id", self.last)
        self.positions[self.last] = position

    def handle(self, number: int) -> None:
        self.client.hdel("cq:refs", str(number))
        self.client.hdel("cq:body", str(number))
        del self.positions[number]

    def retry(self, number: int, *, as_message: int = 0) -> None:
        """Retry a message of a body; of its two, the other one is done."""
        self.client.hdel("cq:refs", str(number))
        self.client.hdel("cq:body", str(number))
        position, own = self.positions.pop(number), as_message or number
        self.client.hset("cq:refs", f"0{own}", 1)
        payload = RETRIED % (own, position) if position else b"@0%d\n{}\n{}" % own
        self.client.hset("cq:msg", str(own), payload)
        self.positions[own] = position

    def end_retry(self, number: int) -> None:
        self.client.hdel("cq:refs", f"0{number}")
        self.client.hdel("cq:msg", str(number))
        del self.positions[number]

    def oldest(self) -> int | None:
        left = [position for position in self.positions.values() if position]
        return min(left, default=None)


@pytest.fixture
def bodies(redis_url: str) -> Iterator[Bodies]:
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
        yield Bodies(client)


def test_whatever_is_published_and_handled_the_oldest_one_is_found(bodies: Bodies) -> None:
    chance = random.Random(12)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    position = 0
    for _ in range(300):
        for _ in range(chance.randrange(8)):
            position += chance.randrange(1, 4)
            bodies.publish(position if chance.random() < 0.7 else None)
        # most are handled in order, some are left for long
        for number in list(bodies.positions)[: chance.randrange(12)]:
            if chance.random() < 0.8:
                bodies.handle(number)
        assert cursor.look() == bodies.oldest()
        if chance.random() < 0.05:
            cursor.reset()


def test_what_is_retried_is_found_until_it_is_handled(bodies: Bodies) -> None:
    chance = random.Random(13)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    position = 0
    retried: set[int] = set()
    for _ in range(300):
        for _ in range(chance.randrange(8)):
            position += chance.randrange(1, 4)
            bodies.publish(position if chance.random() < 0.7 else None)
        for number in list(bodies.positions)[: chance.randrange(12)]:
            fate = chance.random()
            if number in retried:
                if fate < 0.3:
                    retried.remove(number)
                    bodies.end_retry(number)
            elif fate < 0.2:
                retried.add(number)
                bodies.retry(number)
            elif fate < 0.9:
                bodies.handle(number)
        assert cursor.look() == bodies.oldest()
        if chance.random() < 0.05:
            cursor.reset()


class Between:
    """A client between two of whose commands a message is retried."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._client = bodies.client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def client(self) -> redis.Redis:
        return cast("redis.Redis", self)


def test_what_is_retried_during_the_first_look_is_found(bodies: Bodies) -> None:
    # given an event on two queues, and later ones
    bodies.publish(1)
    second = bodies.last = bodies.client.incr("cq:id")
    for position in range(2, 11):
        bodies.publish(position)

    class Scanning(Between):
        """While it is scanned, its entry goes to where the scan has been."""

        def hscan(self, key: str, cursor: int, **options: Any) -> Any:
            if options["match"] is None:
                self._bodies.retry(1, as_message=second)
                found: Any
                cursor, found = self._client.hscan(key, cursor, **options)
                return cursor, {field: n for field, n in found.items() if field != b"0%d" % second}
            return self._client.hscan(key, cursor, **options)

    cursor = OldestUnhandled(Scanning(bodies).client, "cq:{}".format)

    assert cursor.look() == 1


def test_what_is_retried_while_it_is_read_is_found(bodies: Bodies) -> None:
    bodies.publish(7)

    class Reading(Between):
        """When the body is to be read, the event has just been retried."""

        def hget(self, key: str, field: Any) -> Any:
            if key == "cq:body" and self._client.hexists("cq:refs", "1"):
                self._bodies.retry(1)
            return self._client.hget(key, field)

    cursor = OldestUnhandled(Reading(bodies).client, "cq:{}".format)

    assert cursor.look() == 7
    assert cursor.look() == 7


def test_a_look_that_may_take_no_time_goes_on_where_the_last_one_ended(bodies: Bodies) -> None:
    # given more than is read in one round trip, of which the first half is handled
    for position in range(1, 3001):
        bodies.publish(position)
    for number in range(1, 1501):
        bodies.handle(number)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format, look_s=0)
    # when it is looked at in slices, then no answer is behind the oldest, and it comes to it
    answers: list[int | None] = []
    while not answers or answers[-1] != 1501:
        answers.append(cursor.look())
        assert answers[-1] is not None
        assert answers[-1] <= 1501
        assert len(answers) < 100
    assert len(answers) > 1


def test_a_backlog_is_read_once_and_not_at_each_look(bodies: Bodies) -> None:
    # given a backlog that has been looked over
    for position in range(1, 5001):
        bodies.publish(position)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    assert cursor.look() == 1
    before = commands(bodies.client)
    # when it is looked at again, and the oldest is handled in between
    bodies.handle(1)
    assert cursor.look() == 2
    # then a handful of commands was enough
    assert commands(bodies.client) - before < 12


def commands(client: redis.Redis) -> int:
    return int(client.info("stats")["total_commands_processed"])


def test_what_was_given_before_the_relay_went_back_does_not_count(bodies: Bodies) -> None:
    # given events that nobody has handled, and a relay that went back and gave them again
    for position in range(6, 11):
        bodies.publish(position)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    cursor.reset(after=bodies.last)
    assert cursor.look() is None
    for position in range(4, 11):
        bodies.publish(position)
    # then the oldest is that of those, whose position is lower though its number is not
    assert cursor.look() == 4
    # and a relay that takes over knows it too
    other = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    other.reset(after=5)
    assert other.look() == 4


def test_a_server_that_has_lost_data_is_looked_over_anew(bodies: Bodies) -> None:
    # given a server on which everything was handled
    for position in range(1, 11):
        bodies.publish(position)
    cursor = OldestUnhandled(lambda: bodies.client, "cq:{}".format)
    assert cursor.look() == 1
    for number in list(bodies.positions):
        bodies.handle(number)
    assert cursor.look() is None
    # when it has lost all, and counts from the beginning
    bodies.client.flushall()
    bodies.last = 0
    bodies.publish(3)
    cursor.reset()
    # then what is there is found
    assert cursor.look() == 3
