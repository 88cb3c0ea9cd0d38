"""Locks of aggregates in Redis: they exclude, end, and lie under the prefix, whoever holds them."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler
from cqrs_celery.backends.redis import locks as locks_module
from cqrs_celery.backends.redis.locks import EXPIRE_S, RedisLocks
from cqrs_celery.errors import LockTimeout, StoreUnavailable
from cqrs_celery.store.stream import StreamName
from tests.nodes import RedisNode
from tests.waiting import wait_until

PREFIX = "{shop}."
BOLT = StreamName("shop", "Item", "bolt: ä 🔩")
NUT = StreamName("shop", "Item", "nut")
KEY = f"{PREFIX}cq:lock:shop:Item:bolt: ä 🔩"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def locks(client: redis.Redis) -> RedisLocks:
    return RedisLocks(lambda: client, prefix=PREFIX)


def test_who_comes_second_waits_until_the_first_is_done(locks: RedisLocks) -> None:
    # given threads that read a number, wait, and write it back; when they do so under a lock
    count = 0

    def add(_: int) -> None:
        nonlocal count
        with locks.hold(BOLT, wait_s=10):
            before = count
            time.sleep(0.001)
            count = before + 1

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(add, range(64)))
    # then none got in another's way
    assert count == 64


def test_two_aggregates_have_two_locks(locks: RedisLocks) -> None:
    with locks.hold(BOLT, wait_s=0), locks.hold(NUT, wait_s=0):
        pass


@pytest.mark.alone  # measures time
def test_a_lock_held_too_long_names_the_aggregate_and_its_holder(locks: RedisLocks) -> None:
    with locks.hold(BOLT, wait_s=0):
        started = time.monotonic()
        with pytest.raises(
            LockTimeout, match=r"Item-bolt: ä 🔩 is locked by .*, process"
        ) as caught:
            locks.hold(BOLT, wait_s=0.3).__enter__()
        waited_s = time.monotonic() - started
    assert f"process {os.getpid()}" in caught.value.holder
    assert caught.value.aggregate == "Item-bolt: ä 🔩"
    assert 0.3 <= waited_s < 2


@pytest.mark.alone  # measures time
def test_a_wait_ends_in_time_however_often_others_are_quicker(
    locks: RedisLocks, client: redis.Redis
) -> None:
    # given a lock that changes hands all the time, each time waking somebody
    signal_key = f"{PREFIX}cq:lock-signal:{BOLT.key}"
    client.set(KEY, "others")
    stop = threading.Event()

    def wake() -> None:
        while not stop.wait(0.01):
            client.lpush(signal_key, 1)

    waker = threading.Thread(target=wake)
    waker.start()
    # when somebody waits for it, then not for longer than was said
    started = time.monotonic()
    try:
        with pytest.raises(LockTimeout, match="locked by others"):
            locks.hold(BOLT, wait_s=0.5).__enter__()
    finally:
        stop.set()
        waker.join()
    assert time.monotonic() - started < 2


def test_every_key_is_under_the_prefix_and_none_stays(
    locks: RedisLocks, client: redis.Redis
) -> None:
    with locks.hold(BOLT, wait_s=0):
        assert client.keys() == [KEY.encode()]
        ttl: Any = client.pttl(KEY)
        assert 0 < ttl <= locks_module.EXPIRE_S * 1000
    # the signal stays for a second, for one who has just begun to wait
    wait_until(lambda: client.keys() == [], 5, lambda: f"no keys: {client.keys()}")


def hold_until_killed(url: str, held: Any) -> None:
    client = redis.Redis.from_url(url)
    with RedisLocks(lambda: client, prefix=PREFIX, expire_s=1).hold(BOLT, wait_s=5):
        held.set()
        signal.pause()


def test_a_killed_holders_lock_is_free_again_when_it_expires(
    redis_url: str, locks: RedisLocks
) -> None:
    # given a process that holds the lock, and is killed
    context = multiprocessing.get_context("spawn")
    held = context.Event()
    holder = context.Process(target=hold_until_killed, args=(redis_url, held))
    holder.start()
    assert held.wait(20)
    with pytest.raises(LockTimeout, match=f"process {holder.pid}"):
        locks.hold(BOLT, wait_s=0).__enter__()
    holder.kill()
    holder.join(10)
    # when somebody waits, then he gets it as soon as it has expired, though nobody woke him
    with locks.hold(BOLT, wait_s=5):
        pass


def test_a_holder_past_its_time_harms_nobody_and_says_so(
    client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    # given a holder whose lock has expired, and the next one
    locks = RedisLocks(lambda: client, prefix=PREFIX)
    with caplog.at_level(logging.WARNING), locks.hold(BOLT, wait_s=0):
        client.delete(KEY)
        with locks.hold(BOLT, wait_s=0):
            pass
        client.set(KEY, "the next one")
    # when it ends, then the next one's lock stays
    assert client.get(KEY) == b"the next one"
    assert caplog.messages == [f"lock of {BOLT} expired after {EXPIRE_S} s, before it was released"]


def test_an_exception_in_the_block_gives_the_lock_back(locks: RedisLocks) -> None:
    with pytest.raises(ValueError, match="ours"), locks.hold(BOLT, wait_s=0):
        raise ValueError("ours")
    with locks.hold(BOLT, wait_s=0):
        pass


def test_a_reply_that_was_lost_does_not_lock_its_asker_out(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a client whose first attempt succeeds, and says it did not
    real = client.set

    def lose_reply(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(client, "set", real)
        real(*args, **kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(client, "set", lose_reply)
    # then it finds that it holds the lock
    with RedisLocks(lambda: client, prefix=PREFIX).hold(BOLT, wait_s=3):
        assert client.exists(KEY)


def test_a_lock_whose_server_is_away_says_so_and_one_lost_on_the_way_does_no_harm(
    fresh_redis_node: RedisNode, caplog: pytest.LogCaptureFixture
) -> None:
    client = fresh_redis_node.client(socket_timeout=1)
    locks = RedisLocks(lambda: client, prefix=PREFIX, where=fresh_redis_node.url)
    # given a holder; when the server goes away, then its block ends as it would have
    with caplog.at_level(logging.WARNING), locks.hold(BOLT, wait_s=0):
        fresh_redis_node.kill()
    assert f"lock of {BOLT} was not released, and expires within" in caplog.text
    # and the next one is told
    with pytest.raises(StoreUnavailable, match=r"could not lock Item-bolt.*does not answer"):
        locks.hold(BOLT, wait_s=1).__enter__()
    client.close()


def test_locking_says_nothing_at_info(locks: RedisLocks, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), locks.hold(BOLT, wait_s=0):
        pass
    assert caplog.messages == []


class Rung(Event, name="belfry.rung"):
    pass


class Bell(Aggregate, name="LockedBell"):
    pass


class RingBell(Command, name="belfry.ring", aggregate=Bell, key="id"):
    id: str = "big"


@command_handler(RingBell, lock="always", retry_on_conflict=0, lock_wait_s=30)
def ring_bell(command: RingBell, session: Session) -> None:
    bell = session.find(Bell, command.id)
    if bell is None:
        bell = Bell(command.id)
        session.add(bell)
    bell.record(Rung())


def test_32_writers_of_one_aggregate_under_a_lock_never_meet(redis_url: str) -> None:
    # given two applications that share only Redis, as two hosts do
    cqrs = []
    for _ in range(2):
        app = Celery("belfry", broker=redis_url, set_as_current=False)
        app.conf.broker_transport = "cqrs_celery.transport:Transport"
        cqrs.append(CQRS(app))
    # when 32 threads carry out commands that are not repeated on a conflict
    with ThreadPoolExecutor(32) as threads:
        list(threads.map(lambda n: cqrs[n % 2].execute(RingBell()), range(128)))
    # then there was none
    assert len(cqrs[0].store.read_all()) == 128
    for one in cqrs:
        one.store.close()
        one.app.close()
