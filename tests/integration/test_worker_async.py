"""A thousand async handlers in a worker of each pool, and in one loop: none refused, none lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from cqrs_celery import CQRS
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from tests import kiosk
from tests.integration.conftest import WorkerFactory
from tests.kiosk import Dawdle, Linger, Meet, SendOn
from tests.waiting import wait_until

ALONE = ("--without-mingle", "--without-gossip")

MANY = 1000


@pytest.fixture
def client(redis_url: str) -> Iterator[CQRS]:
    """Give a client of the kiosk."""
    with kiosk.connected(redis_url) as cqrs:
        yield cqrs


@pytest.mark.parametrize(
    ("pool", "concurrency", "together", "processes"),
    [("solo", 1, 1, 1), ("prefork", 2, 1, 2), ("threads", 200, 200, 1), ("gevent", 1000, 1000, 1)],
)
def test_a_thousand_async_commands_are_carried_out_and_their_events_handled(
    pool: str,
    concurrency: int,
    together: int,
    processes: int,
    redis_url: str,
    client: CQRS,
    data: Any,
    worker_factory: WorkerFactory,
) -> None:
    # given a thousand commands, of which so many wait for one another as the pool runs at a time
    ids = [str(n) for n in range(MANY)]
    results = [client.send_command(Meet(id=n, together=together), task_id=n) for n in ids]
    worker = worker_factory(
        "from tests.kiosk import app", pool=pool, concurrency=concurrency, arguments=ALONE,
        env={"KIOSK_URL": redis_url},
    )  # fmt: skip
    # when all are done
    values = [result.get(timeout=40)["value"] for result in results]
    # then each process has had one loop
    assert {value.partition(" ")[2] for value in values} == {"1"}
    assert len({value.partition(" ")[0] for value in values}) == processes
    # and each command has committed once, and each event was handled
    stored = Counter(one.stream.aggregate_id for one in client.store.read_all(limit=MANY + 1))
    assert stored == Counter(ids)
    wait_until(lambda: data.llen("kiosk:sold") >= MANY, 30, "the subscription")
    assert Counter(name.decode() for name in data.lrange("kiosk:sold", 0, -1)) == Counter(ids)
    # and nothing went wrong on the way, nor at the worker's end
    worker.stop()
    assert not [line for line in worker.logs().splitlines() if "ERROR" in line], worker.logs()
    assert "Traceback" not in worker.logs()


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "gevent"])
def test_what_a_coroutine_sends_belongs_to_its_task(
    pool: str, redis_url: str, client: CQRS, worker_factory: WorkerFactory
) -> None:
    worker_factory(
        "from tests.kiosk import app", pool=pool, concurrency=2, arguments=ALONE,
        env={"KIOSK_URL": redis_url},
    )  # fmt: skip
    # when a handler sends a command from a coroutine that it has started
    sent = client.send_command(SendOn(id="a"), task_id="the-beginning").get(timeout=20)["value"]
    client.app.AsyncResult(sent).get(timeout=20)
    # then that is a part of the handler's trace
    (sold,) = client.store.read_all()
    assert sold.event.metadata.correlation_id == "the-beginning"
    assert sold.event.metadata.causation_id == sent


@pytest.mark.parametrize("pool", ["solo", "prefork", "threads", "gevent"])
def test_a_worker_that_ends_ends_what_handlers_have_left_behind_in_the_loop(
    pool: str, redis_url: str, client: CQRS, data: Any, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(
        "from tests.kiosk import app", pool=pool, arguments=ALONE, env={"KIOSK_URL": redis_url}
    )
    client.send_command(Linger(id="a")).get(timeout=20)
    assert not data.exists("kiosk:ended")
    worker.stop()
    assert data.lrange("kiosk:ended", 0, -1) == [b"a"]
    assert "Traceback" not in worker.logs()
    assert "was destroyed" not in worker.logs()


def test_a_soft_time_limit_reaches_the_coroutine_which_cleans_up(
    redis_url: str, client: CQRS, data: Any, worker_factory: WorkerFactory
) -> None:
    worker_factory(
        "from tests.kiosk import app", pool="prefork", arguments=ALONE,
        env={"KIOSK_URL": redis_url},
    )  # fmt: skip
    with pytest.raises(Exception, match="SoftTimeLimitExceeded") as caught:
        client.send_command(Dawdle(id="a")).get(timeout=20)
    assert type(caught.value).__name__ == "SoftTimeLimitExceeded"
    assert data.lrange("kiosk:cleaned up", 0, -1) == [b"a"]
    # and the process goes on
    assert client.send_command(Meet(id="b"), task_id="b").get(timeout=20)["position"] == 1


@pytest.mark.parametrize("store", ["broker", "sqlite", "postgresql"])
def test_a_thousand_commands_are_executed_in_the_loop_of_a_web_application(
    store: str, redis_url: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # given a web application, by its interface to servers (ASGI), as FastAPI's are
    url = {"broker": "broker", "sqlite": f"sqlite:///{tmp_path / 'events.db'}"}.get(store)
    url = url or request.getfixturevalue("postgres_url")
    with kiosk.connected(redis_url, cqrs_event_store=url) as cqrs:
        if store != "broker":
            create_schema(cast(SqlEventStore, cqrs.store))
        answers = asyncio.run(ask_a_thousand_times(cqrs))
        # then each request is answered, and each command has committed once
        assert Counter(status for status, _ in answers) == {200: MANY}
        stored = Counter(one.stream.aggregate_id for one in cqrs.store.read_all(limit=MANY + 1))
        assert stored == Counter(str(n) for n in range(MANY))
        assert len({int(body) for _, body in answers}) == MANY
        cqrs.store.close()


async def ask_a_thousand_times(cqrs: CQRS) -> list[tuple[int, bytes]]:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        command = kiosk.BuySoon(id=scope["path"].rpartition("/")[2])
        result = await cqrs.execute_async(command)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(result.position).encode()})

    async def request(path: str) -> tuple[int, bytes]:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await application({"type": "http", "method": "POST", "path": path}, receive, send)
        return sent[0]["status"], sent[1]["body"]

    return await asyncio.gather(*[request(f"/stands/{n}") for n in range(MANY)])
