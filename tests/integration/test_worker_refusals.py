"""What a refused command leaves behind in a worker: a line at info, and a result. No more."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from cqrs_celery.errors import AggregateNotFound, StaleVersion
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests import kiosk
from tests.integration.conftest import WorkerFactory
from tests.kiosk import Buy, Refund, SoldOut
from tests.waiting import wait_until

ALONE = ("--without-mingle", "--without-gossip", "-E")


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "gevent"])
def test_a_refusal_is_a_result_and_one_line_in_the_log_in_every_pool(
    pool: str, redis_url: str, data: Any, worker_factory: WorkerFactory
) -> None:
    # given a worker, and somebody who listens to its events
    worker = worker_factory(
        "from tests.kiosk import app", pool=pool, concurrency=2, arguments=ALONE,
        env={"KIOSK_URL": redis_url},
    )  # fmt: skip
    heard: list[dict[str, Any]] = []

    def failed() -> list[dict[str, Any]]:
        return [event for event in heard if event["type"] == "task-failed"]

    with kiosk.connected(redis_url) as cqrs, cqrs.app.connection() as connection:
        receiver = cqrs.app.events.Receiver(connection, handlers={"*": heard.append})
        with receiver.consumer_context(wakeup=False) as (listening, _, _):
            wait_until(lambda: _drained(listening, heard), 10, "a heartbeat")
            # when a command is refused, whose handler is tried again for every exception
            refused = cqrs.send_command(Buy(id="a", count=6))
            with pytest.raises(SoldOut, match="a: 6 wanted, 5 left") as caught:
                refused.get(timeout=20)
            # then its result is the refusal, with its fields
            assert (caught.value.wanted, caught.value.found) == (6, 5)
            assert refused.state == "FAILURE"
            # and nothing is committed, and the next one goes on
            assert cqrs.send_command(Buy(id="a", count=5)).get(timeout=20)["position"] == 1
            # and Flower is told of it by its name
            wait_until(lambda: _drained(listening, heard) and failed(), 10, "the event")
    assert [(event["uuid"], event["exception"]) for event in failed()] == [
        (refused.id, "SoldOut('a: 6 wanted, 5 left')")
    ]
    # and the log has one line of it, without a traceback, and there is no dead letter
    wait_until(lambda: "SoldOut" in worker.logs(), 10, "the line in the log")
    lines = [line for line in worker.logs().splitlines() if "SoldOut" in line]
    assert len(lines) == 1, worker.logs()
    assert f"Task kiosk.buy[{refused.id}] raised expected: SoldOut(" in lines[0]
    assert "INFO" in lines[0]
    assert "Traceback" not in worker.logs()
    assert not list(ReliableQueue(data).letters.all("kiosk.commands"))


def test_what_is_not_there_or_has_moved_on_is_one_line_too(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(
        "from tests.kiosk import app", pool="solo", arguments=ALONE, env={"KIOSK_URL": redis_url}
    )
    with kiosk.connected(redis_url) as cqrs:
        # given commands to a stall that nobody has opened, and to one that others have changed
        missing = cqrs.send_command(Refund(id="b", seen_version=1))
        with pytest.raises(AggregateNotFound):
            missing.get(timeout=20)
        cqrs.send_command(Buy(id="a", count=1)).get(timeout=20)
        cqrs.send_command(Buy(id="a", count=1)).get(timeout=20)
        stale = cqrs.send_command(Refund(id="a", seen_version=1))
        with pytest.raises(StaleVersion):
            stale.get(timeout=20)
    # then the log has one line of each, at info: written behind the result, which is out before it
    for name, result in (("AggregateNotFound", missing), ("StaleVersion", stale)):
        wait_until(lambda name=name: name in worker.logs(), 10, f"the line of {name}")  # type: ignore[misc]
        (line,) = [line for line in worker.logs().splitlines() if name in line]
        assert f"Task kiosk.refund[{result.id}] raised expected: {name}(" in line
        assert "INFO" in line
    assert "Traceback" not in worker.logs()


def _drained(connection: Any, found: list[dict[str, Any]]) -> bool:
    with suppress(TimeoutError):
        connection.drain_events(timeout=0.2)
    return bool(found)
