"""What can't be done is set aside whole, with its reason; nothing vanishes, the worker goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from kombu import Producer

from cqrs_celery import CQRS
from cqrs_celery.messages.metadata import new_id, utc_now
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import DeadLetter, Destination
from cqrs_celery.store.events import NewEvent, StreamAppend
from cqrs_celery.store.stream import StreamName
from cqrs_celery.transport.envelope import split
from tests import depot
from tests.depot import EmptyBox, FillBox, FillBoxTooSlowly, KillWorker, RefuseBox
from tests.integration.conftest import WorkerFactory
from tests.nodes import WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

APPLICATION = "from tests.depot import app"

#: A dead worker's messages come back soon, and a message that kills workers is given up at once.
OPTIONS = {"lease_s": 2, "max_deliveries": 2}

COMMANDS, SHELF = "depot.commands", "depot.shelf"


@pytest.fixture
def cqrs(redis_url: str) -> Iterator[CQRS]:
    """Give a client of the depot."""
    with depot.connected(redis_url) as cqrs:
        yield cqrs


@pytest.fixture
def worker(redis_url: str, worker_factory: WorkerFactory) -> WorkerNode:
    """Run a worker of two processes."""
    return worker_factory(
        APPLICATION,
        concurrency=2,
        arguments=["--without-mingle", "--without-gossip"],
        env={"DEPOT_URL": redis_url, "DEPOT_OPTIONS": json.dumps(OPTIONS)},
    )


def letters(data: redis.Redis, queue: str, count: int) -> list[DeadLetter]:
    """Wait for a number of dead letters, and return them in the order of their messages."""
    reliable = ReliableQueue(data)

    def found() -> list[DeadLetter]:
        return sorted(reliable.letters.all(queue), key=lambda letter: letter.id)

    wait_until(
        lambda: len(found()) >= count,
        20,
        lambda: f"{count} letters in {queue}, not {[letter.why[:200] for letter in found()]}",
    )
    assert len(found()) == count
    return found()


def reason(letter: DeadLetter) -> dict[str, Any]:
    """Return why a letter is dead."""
    why: dict[str, Any] = json.loads(letter.why)
    return why


def assert_goes_on(cqrs: CQRS, data: redis.Redis, worker: WorkerNode) -> None:
    """Check that the worker still works, and that nothing is left in flight."""
    result = cqrs.send_command(FillBox(id="good", count=2)).get(timeout=20)
    assert result["value"] == 2
    wait_until(lambda: depot.seen(data, "shelf", "good") == [1], 10, "the event of a good command")
    wait_until(lambda: not in_flight(data), 10, "nothing to be in flight")
    assert worker.status == "running"


def raw(cqrs: CQRS, body: bytes, *, task: str = "depot.fill_box", **options: Any) -> None:
    """Send a body as it is, as a message for a task."""
    headers = {"task": task, "id": new_id(), "lang": "py"} if task else {}
    options = {"content_type": "application/json", "content_encoding": "utf-8", **options}
    with cqrs.app.connection_for_write() as connection:
        Producer(connection).publish(body, routing_key=COMMANDS, headers=headers, **options)


def a_command(**changes: Any) -> bytes:
    """Return the body of a command that fills a box, changed."""
    plain = {"type": "depot.fill_box", "version": 1, "data": {"id": "bad", "count": 1}}
    return json.dumps([[{**plain, **changes}], {}, {}]).encode()


Send = Callable[[CQRS, redis.Redis], object]

#: What is sent, what its letter's reason is, and what its payload still holds.
POISON: dict[str, tuple[Send, str, bytes]] = {
    "an undecodable body": (
        lambda cqrs, data: raw(cqrs, b'[[{"half": '), "undecodable body", b'[[{"half": ',
    ),
    "a body that is no text": (
        lambda cqrs, data: raw(cqrs, b"\xff\xfe\x00"), "undecodable body", b"\xff\xfe\x00",
    ),
    "a body of a content type that is not accepted": (
        lambda cqrs, data: raw(
            cqrs, b"cos\nsystem\n.",
            content_type="application/x-python-serialize", content_encoding="binary",
        ),
        "invalid task message", b"cos\nsystem\n.",
    ),
    "a body of another shape": (
        lambda cqrs, data: raw(cqrs, b'{"hello": "depot"}'),
        "malformed task message", b'{"hello": "depot"}',
    ),
    "a body that is a number": (
        lambda cqrs, data: raw(cqrs, b"17"), "malformed task message", b"17",
    ),
    "a list that is no triple": (
        lambda cqrs, data: raw(cqrs, b"[[1], {}]"), "malformed task message", b"[[1], {}]",
    ),
    "arguments that are no list": (
        lambda cqrs, data: raw(cqrs, b"[5, 6, {}]"), "invalid task message", b"[5, 6, {}]",
    ),
    "options that are no object": (
        lambda cqrs, data: raw(cqrs, b"[[1], {}, 7]"), "invalid task message", b"[[1], {}, 7]",
    ),
    "a message for nobody": (
        lambda cqrs, data: raw(cqrs, b'{"hello": "all"}', task=""),
        "no task message", b'{"hello": "all"}',
    ),
    "an unknown task": (
        lambda cqrs, data: raw(cqrs, b"[[], {}, {}]", task="depot.burn"),
        "unknown task", b"[[], {}, {}]",
    ),
    "an unreadable envelope": (
        lambda cqrs, data: ReliableQueue(data).publish([Destination(COMMANDS, "no envelope")]),
        "unreadable envelope", b"no envelope",
    ),
    "an unknown command": (
        lambda cqrs, data: raw(cqrs, a_command(type="depot.steal")),
        "unreadable message", b'"depot.steal"',
    ),
    "a command with a wrong field": (
        lambda cqrs, data: raw(cqrs, a_command(data={"id": "bad", "count": "two"})),
        "unreadable message", b'"count": "two"',
    ),
    "a command that is no object": (
        lambda cqrs, data: raw(cqrs, b"[[17], {}, {}]"), "unreadable message", b"[[17], {}, {}]",
    ),
    "more arguments than one": (
        lambda cqrs, data: raw(cqrs, b"[[1, 2], {}, {}]"),
        "unreadable message", b"[[1, 2], {}, {}]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_message_that_cannot_be_read_becomes_a_dead_letter_with_its_reason_and_its_bytes(
    pool: str, redis_url: str, cqrs: CQRS, data: redis.Redis, worker_factory: WorkerFactory
) -> None:
    # given a worker
    worker = worker_factory(
        APPLICATION,
        pool=pool,
        arguments=["--without-mingle", "--without-gossip"],
        env={"DEPOT_URL": redis_url, "DEPOT_OPTIONS": json.dumps(OPTIONS)},
    )
    # when it gets every kind of poison
    for send, _, _ in POISON.values():
        send(cqrs, data)
    # then each is a dead letter, and says why
    found = letters(data, COMMANDS, len(POISON))
    reasons = [reason(letter)["reason"] for letter in found]
    assert dict(zip(POISON, reasons, strict=True)) == {
        name: why for name, (_, why, _) in POISON.items()
    }
    for letter, (_, why, content) in zip(found, POISON.values(), strict=True):
        assert content in letter.payload
        # and the worker's log has said of each, once, which it is and why
        told = f"message {letter.id} of queue {letter.queue} became a dead letter: {why}"
        wait_until(lambda told=told: told in worker.logs(), 10, told)  # type: ignore[misc]
        assert worker.logs().count(told.partition(":")[0]) == 1
    # and the worker goes on
    assert_goes_on(cqrs, data, worker)


def test_what_is_in_a_refused_message_is_not_in_the_log(
    cqrs: CQRS, data: redis.Redis, worker: WorkerNode
) -> None:
    # given messages for an unknown task, for none, and of a body that no task takes
    shown = {"argsrepr": "('geheim',)", "kwargsrepr": "{'word': 'geheim'}"}
    with cqrs.app.connection_for_write() as connection:
        producer = Producer(connection)
        for body, task in (
            (b'[["geheim"], {}, {}]', "depot.burn"),
            (b'{"hello": "geheim"}', ""),
            (b'["geheim", 6, {}]', "depot.fill_box"),
        ):
            headers = {"task": task, "id": "1", **shown} if task else shown
            producer.publish(
                body,
                routing_key=COMMANDS,
                headers=headers,
                content_type="application/json",
                content_encoding="utf-8",
            )
    # when a worker has refused them
    found = letters(data, COMMANDS, 3)
    assert [reason(letter)["reason"] for letter in found] == [
        "unknown task", "no task message", "invalid task message",
    ]  # fmt: skip
    for letter in found:
        told = f"message {letter.id} of queue {letter.queue} became a dead letter"
        wait_until(lambda told=told: told in worker.logs(), 10, told)  # type: ignore[misc]
    # then its log names them, and says nothing of what is in them
    assert "no task depot.burn is registered in this worker" in worker.logs()
    assert "geheim" not in worker.logs()
    assert_goes_on(cqrs, data, worker)


def test_an_event_that_nobody_can_read_names_itself_and_its_place(
    cqrs: CQRS, data: redis.Redis, worker: WorkerNode
) -> None:
    # given an event in the store that no class fits; when a command comes for its aggregate
    stream = StreamName("depot", "DepotBox", "old")
    event = NewEvent(new_id(), "depot.box_burnt", 1, utc_now(), b"{}")
    malformed = NewEvent(new_id(), "depot.box_filled", 1, utc_now(), b'{"count":"many"}')
    cqrs.store.append([StreamAppend(stream, 0, [event])])
    result = cqrs.send_command(FillBox(id="old"))
    # then it is kept, and says which event is where
    (letter,) = letters(data, COMMANDS, 1)
    assert reason(letter)["reason"] == "unreadable message"
    assert "'depot.box_burnt', version 1, is unknown here" in reason(letter)["error"]
    assert "stored in DepotBox-old at version 1" in json.dumps(reason(letter))
    assert result.state == "FAILURE"
    # when such an event reaches a subscription, then it is kept there
    cqrs.store.append([StreamAppend(StreamName("depot", "DepotBox", "new"), 0, [malformed])])
    for queue, task in ((SHELF, "shelf.shelve"), ("depot.order_more_boxes", "order_more_boxes")):
        (letter,) = letters(data, queue, 1)
        assert reason(letter)["reason"] == "unreadable message"
        assert "does not fit its type: Expected `int`, got `str`" in reason(letter)["error"]
        assert "recorded in DepotBox-new at version 1" in json.dumps(reason(letter))
        assert reason(letter)["task"] == f"depot.{task}"
        assert b'{"count":"many"}' in letter.body
    assert_goes_on(cqrs, data, worker)


def test_a_task_that_hits_its_time_limit_or_kills_its_process_becomes_a_dead_letter(
    cqrs: CQRS, data: redis.Redis, worker: WorkerNode
) -> None:
    # given commands behind one that takes too long, and behind one that kills its process
    late = cqrs.send_command(FillBoxTooSlowly(id="late"))
    after_late = cqrs.send_command(FillBox(id="late", count=3))
    cqrs.send_command(KillWorker(id="killed"))
    after_killed = cqrs.send_command(FillBox(id="killed", count=4))
    # then each is kept with its reason, and does not block what stands behind it
    slow, killed = letters(data, COMMANDS, 2)
    assert reason(slow)["reason"] == "hard time limit"
    assert reason(slow)["task"] == "depot.fill_box_too_slowly"
    assert reason(slow)["task_id"] == late.id
    assert b'"id": "late"' in slow.payload
    assert slow.sequence == "depot:DepotBox:late"
    assert after_late.get(timeout=20)["value"] == 3
    # and the other was tried as often as the transport's options say
    assert data.get("killed:killed") == b"2"
    assert reason(killed)["reason"] == "its child process was lost"
    assert reason(killed)["deliveries"] == 2
    assert "SIGKILL" in reason(killed)["error"] or "signal 9" in reason(killed)["error"]
    assert after_killed.get(timeout=20)["value"] == 4
    # when the late one is put back, then it is tried again, with the same end
    assert ReliableQueue(data).letters.redrive(COMMANDS, slow.id) == "done"
    wait_until(
        lambda: next((one.times, one.state) for one in letters(data, COMMANDS, 2)) == (2, "dead"),
        20,
        "its second death",
    )
    assert_goes_on(cqrs, data, worker)


def test_a_failing_event_blocks_only_its_own_sequence_and_a_failing_command_none(
    cqrs: CQRS, data: redis.Redis, worker: WorkerNode
) -> None:
    # given a subscriber that fails at the second event of one box
    data.sadd("broken", "one:2")
    # when three boxes have five events each, and a command fails in between
    for n in range(1, 5):
        for name in ("one", "two", "three"):
            cqrs.send_command(FillBox(id=name, count=n))
            if n == 2:
                cqrs.send_command(RefuseBox(id=name))
    last = [cqrs.send_command(EmptyBox(id=name)) for name in ("one", "two", "three")]
    # then all commands were handled
    for result in last:
        result.get(timeout=20)
    assert not list(ReliableQueue(data).letters.all(COMMANDS))
    # and the other boxes' events were, while those of the one wait behind the failed one
    everything = [1, 2, 3, 4, 5]
    for name in ("two", "three"):
        wait_until(lambda n=name: depot.seen(data, "shelf", n) == everything, 10, name)  # type: ignore[misc]
    (letter,) = letters(data, SHELF, 1)
    assert reason(letter)["reason"] == "its function failed"
    assert reason(letter)["exception"] == "builtins.RuntimeError"
    assert reason(letter)["error"] == "the shelf is broken at 2"
    assert "in shelve" in reason(letter)["traceback"]
    assert letter.sequence == "depot:DepotBox:one"
    assert json.loads(split(letter.payload, letter.body)[1])[0][0]["version"] == 2
    # after the retries that are the default
    assert reason(letter)["attempts"] == 4
    assert reason(letter)["first_failed_at"] < reason(letter)["failed_at"]
    assert depot.seen(data, "shelf", "one") == [1]
    assert ReliableQueue(data).count(SHELF).blocked == 4
    # when it is put back before it can succeed, then it is dead again, and still blocks
    assert ReliableQueue(data).letters.redrive(SHELF, letter.id) == "done"
    wait_until(
        lambda: [(one.times, one.state) for one in letters(data, SHELF, 1)] == [(2, "dead")],
        20,
        "its second death",
    )
    assert depot.seen(data, "shelf", "one") == [1]
    # when it is put back and succeeds, then everything follows in order
    data.delete("broken")
    assert ReliableQueue(data).letters.redrive(SHELF, letter.id) == "done"
    wait_until(lambda: depot.seen(data, "shelf", "one") == everything, 10, "the rest of one")
    assert ReliableQueue(data).count(SHELF).blocked == 0
    assert not list(ReliableQueue(data).letters.all(SHELF))
    assert_goes_on(cqrs, data, worker)
