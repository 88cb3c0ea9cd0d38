"""A failing handler is tried again where it stands, then set aside, then tried again by itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import mill
from tests.integration.conftest import WorkerFactory
from tests.mill import Grind
from tests.milling import FLOUR, POOLS, letters, seen, start, tried, wait_for
from tests.waiting import wait_until

#: Letters are tried again after a second.
QUICK = {"cqrs_redrive_first_s": 1, "cqrs_redrive_max_s": 1}


@pytest.mark.parametrize("pool", POOLS)
def test_a_failing_event_is_retried_while_its_sequence_waits_and_others_flow(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    """ACCEPTANCE 76."""
    start(worker_factory, redis_url, pool=pool)
    # given an event whose handler fails twice
    data.hset("broken", "flour:one:2", "TooHot:2")
    # when it is committed among others
    for name in ("one", "two"):
        cqrs.send_command(Grind(id=name, times=3)).get(timeout=20)
    # then the others don't wait for it
    wait_for(data, "flour", "two", [1, 2, 3])
    # and its own follow it in order
    wait_for(data, "flour", "one", [1, 2, 3])
    assert len(tried(data, "flour:one:2")) == 2
    assert letters(queue) == []


def test_a_waiting_retry_waits_in_redis_not_in_a_worker(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given an event that waits for its second retry, when no worker runs any more
    worker = start(worker_factory, redis_url)
    data.hset("broken", "flour:one:1", "TooHot:2")
    cqrs.send_command(Grind(id="one", times=2)).get(timeout=20)
    wait_until(lambda: queue.count(FLOUR).retrying, 20, "a retry to wait")
    worker.kill()
    assert queue.count(FLOUR).retrying == 2
    # when another worker starts
    start(worker_factory, redis_url)
    # then it goes on with it
    wait_for(data, "flour", "one", [1, 2])


@pytest.mark.parametrize("pool", POOLS)
def test_after_the_last_retry_it_is_a_letter_with_all_that_is_known(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    """ACCEPTANCE 76 and 83."""
    worker = start(worker_factory, redis_url, pool=pool)
    data.hset("broken", "flour:one:1", "TooHot")
    cqrs.send_command(Grind(id="one", times=2)).get(timeout=20)

    wait_until(lambda: letters(queue), 20, "a letter")

    (letter,) = letters(queue)
    why = json.loads(letter.why)
    assert (why["exception"], why["error"]) == ("tests.mill.TooHot", "flour:one:1 fails")
    assert why["attempts"] == len(tried(data, "flour:one:1")) == 3
    assert why["first_failed_at"] - tried(data, "flour:one:1")[0] < 1 < why["failed_at"]
    assert why["worker"].startswith(worker.name)
    assert "fail_if_told" in why["traceback"]
    assert (letter.times, letter.state) == (1, "dead")
    wait_until(lambda: queue.count(FLOUR).blocked == 2, 10, "the other to wait behind it")


def test_what_is_given_up_on_is_a_letter_at_once(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url)
    data.hset("broken", "flour:one:1", "Rotten")
    cqrs.send_command(Grind(id="one")).get(timeout=20)

    wait_until(lambda: letters(queue), 20, "a letter")

    assert len(tried(data, "flour:one:1")) == 1


def test_a_command_is_retried_for_what_it_names_alone(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url)
    # given commands that fail once, always, and with what is not retried
    data.hset("broken", "command:once", "TooHot:1")
    data.hset("broken", "command:always", "TooHot")
    data.hset("broken", "command:rotten", "Rotten")
    # when they are sent
    once = cqrs.send_command(Grind(id="once"))
    always = cqrs.send_command(Grind(id="always"))
    rotten = cqrs.send_command(Grind(id="rotten"))
    # then the first succeeds, and the others fail with their exception
    assert once.get(timeout=20)["value"] == 1
    with pytest.raises(mill.TooHot):
        always.get(timeout=20)
    with pytest.raises(mill.Rotten):
        rotten.get(timeout=20)
    assert [len(tried(data, f"command:{name}")) for name in ("always", "rotten")] == [3, 1]
    # and nothing is committed, and no letter written
    assert {one.stream.aggregate_id for one in cqrs.store.read_all()} == {"once"}
    assert letters(queue, "mill.commands") == []


def test_a_retry_shows_as_such(
    cqrs: CQRS, data: Any, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url)
    data.hset("broken", "command:one", "TooHot:2")
    result = cqrs.send_command(Grind(id="one"))

    wait_until(lambda: result.state == "RETRY", 20, "the state RETRY")

    assert result.get(timeout=20)["value"] == 1


@pytest.mark.parametrize("pool", POOLS)
def test_workers_try_letters_again_and_the_rest_follows_in_order(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    """ACCEPTANCE 82, with nobody's help."""
    start(worker_factory, redis_url, QUICK, pool=pool)
    # given an event that fails for a while
    data.hset("broken", "flour:one:1", "Rotten:3")
    # when it is committed with others behind it
    cqrs.send_command(Grind(id="one", times=3)).get(timeout=20)
    # then it is tried until it succeeds, once at a time, and the rest follows
    wait_for(data, "flour", "one", [1, 2, 3])
    at = tried(data, "flour:one:1")
    assert len(at) == 3
    assert at[2] - at[1] > 0.9
    wait_until(lambda: letters(queue) == [], 10, "the letter to be gone")
    wait_until(lambda: not any(queue.count(FLOUR)), 10, "nothing to be left")


def test_past_its_time_a_letter_is_archived_and_the_log_alarms(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    """ACCEPTANCE 85."""
    worker = start(worker_factory, redis_url, {**QUICK, "cqrs_dead_letter_ttl_s": 3})
    data.hset("broken", "flour:one:1", "Rotten")
    cqrs.send_command(Grind(id="one", times=2)).get(timeout=20)

    wait_until(lambda: [one.state for one in letters(queue)] == ["archived"], 20, "the archive")

    count = len(tried(data, "flour:one:1"))
    assert 2 <= count <= 4
    wait_until(lambda: "archived" in worker.logs(), 10, "the log to alarm")
    assert "CRITICAL" in worker.logs()
    # and its sequence is closed, until somebody says what is to be done
    assert queue.count(FLOUR).blocked == 2
    data.delete("broken")
    assert queue.letters.redrive(FLOUR, letters(queue)[0].id, also_archived=True) == "done"
    wait_for(data, "flour", "one", [1, 2])


def test_where_letters_let_go_on_the_rest_does_not_wait(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url, QUICK)
    data.hset("broken", "bran:one:1", "Rotten:2")

    cqrs.send_command(Grind(id="one", times=3)).get(timeout=20)

    wait_until(lambda: 1 in seen(data, "bran", "one"), 20, "the failed one")
    assert seen(data, "bran", "one") == [2, 3, 1]


def test_where_letters_are_discarded_the_rest_follows_in_time(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    worker = start(worker_factory, redis_url, QUICK)
    data.hset("broken", "dust:one:1", "Rotten")

    cqrs.send_command(Grind(id="one", times=3)).get(timeout=20)

    wait_for(data, "dust", "one", [2, 3])
    assert letters(queue, "mill.dust") == []
    wait_until(lambda: "deleted, its time is over; " in worker.logs(), 10, "the log to say so")


def test_a_strictly_sequential_subscription_sees_all_commits_in_their_order(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    """Sequential or concurrent, per subscription."""
    start(worker_factory, redis_url)
    # given commits to several sacks
    for result in [cqrs.send_command(Grind(id=f"s{n}", times=3)) for n in range(20)]:
        result.get(timeout=20)
    recorded = [
        f"{stored.stream.aggregate_id}:{stored.version}" for stored in cqrs.store.read_all()
    ]
    # when all are handled
    wait_until(lambda: data.llen("seen:scale") == 60, 20, "all events")
    # then their order is that of the commits
    assert [one.decode() for one in data.lrange("seen:scale", 0, -1)] == recorded
    # and one that fails holds up all
    data.hset("broken", "scale:x:1", "Rotten")
    for name in ("x", "y"):
        cqrs.send_command(Grind(id=name)).get(timeout=20)
    wait_until(lambda: queue.count("mill.scale").blocked == 2, 20, "both to wait")


def test_an_unordered_subscription_waits_for_nothing(
    cqrs: CQRS, data: Any, queue: ReliableQueue, redis_url: str, worker_factory: WorkerFactory
) -> None:
    start(worker_factory, redis_url)
    data.hset("broken", "noise:one:1", "Rotten")

    cqrs.send_command(Grind(id="one", times=50)).get(timeout=20)

    wait_until(lambda: len(seen(data, "noise", "one")) == 49, 20, "all others")
    (letter,) = letters(queue, "mill.noise")
    assert letter.sequence == ""


@pytest.mark.parametrize("pool", POOLS)
def test_what_follows_in_a_sequence_needs_no_other_wake_up(
    pool: str,
    cqrs: CQRS,
    data: Any,
    queue: ReliableQueue,
    redis_url: str,
    worker_factory: WorkerFactory,
) -> None:
    # given a sequence that is held up, and a worker that has nothing else to do
    start(worker_factory, redis_url, pool=pool)
    data.hset("broken", "flour:one:1", "Rotten:1")
    cqrs.send_command(Grind(id="one", times=100)).get(timeout=20)
    for quiet in ("bran", "dust", "scale", "noise"):
        wait_until(lambda q=quiet: data.llen(f"seen:{q}") == 100, 20, quiet)  # type: ignore[misc]
    wait_until(lambda: letters(queue), 10, "the letter")
    # when it goes on
    queue.letters.redrive(FLOUR, letters(queue)[0].id)
    # then a hundred events need less than a hundred of the looks that come each second
    wait_for(data, "flour", "one", list(range(1, 101)))
