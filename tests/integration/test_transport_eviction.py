"""A server that deletes messages to make room is refused by workers, and others are warned."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import redis
from celery import Celery
from redis.exceptions import NoPermissionError

from cqrs_celery.transport import TRANSPORT, eviction
from cqrs_celery.transport.clients import BrokerClient
from cqrs_celery.transport.eviction import Memory, memory_of
from tests.conftest import RedisFactory
from tests.integration.conftest import WorkerFactory
from tests.nodes import RedisNode
from tests.waiting import wait_until

WORKER = """
    from celery import Celery

    app = Celery("evicted", broker={url!r})
    app.conf.broker_transport = {transport!r}
"""


@pytest.fixture(autouse=True)
def _as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "_looked_at", set())
    monkeypatch.setattr(eviction, "_said", set())
    monkeypatch.setattr(eviction, "_has_consumed", False)


def server_with(factory: RedisFactory, policy: str, maxmemory: str = "100mb") -> RedisNode:
    return factory(appendonly=False, options={"maxmemory": maxmemory, "maxmemory-policy": policy})


@pytest.mark.parametrize(
    ("policy", "pool"),
    [("allkeys-lru", "prefork"), ("allkeys-random", "solo"), ("volatile-ttl", "threads")],
)
def test_a_worker_ends_with_one_line_where_the_server_deletes_messages(
    policy: str, pool: str, redis_factory: RedisFactory, worker_factory: WorkerFactory
) -> None:
    # given a server that deletes what was used least, or what has a time to live
    server = server_with(redis_factory, policy)
    # when a worker starts there
    source = WORKER.format(url=server.url, transport=TRANSPORT)
    worker = worker_factory(source, pool=pool, is_started=False)
    worker.start()
    # then it ends, and says in one line what to set
    wait_until(lambda: worker.status == "exited", 30, worker.log_tail)
    assert worker.exit_code == 1
    (line,) = [line for line in worker.logs().splitlines() if "the worker can't start" in line]
    assert f"has the maxmemory-policy {policy} and a maxmemory of" in line
    assert "CONFIG SET maxmemory-policy noeviction" in line
    assert "Traceback" not in worker.logs()


@pytest.mark.parametrize(("policy", "maxmemory"), [("noeviction", "100mb"), ("allkeys-lru", "0")])
def test_a_worker_starts_where_nothing_is_deleted(
    policy: str, maxmemory: str, redis_factory: RedisFactory, worker_factory: WorkerFactory
) -> None:
    server = server_with(redis_factory, policy, maxmemory)
    worker = worker_factory(WORKER.format(url=server.url, transport=TRANSPORT), pool="solo")
    # without a limit, a policy that would delete is worth a warning
    assert ("as soon as it gets a maxmemory" in worker.logs()) == (policy != "noeviction")


def test_a_sender_and_a_store_are_warned_once_and_work(
    redis_factory: RedisFactory, caplog: pytest.LogCaptureFixture
) -> None:
    server = server_with(redis_factory, "allkeys-lru")
    app = Celery("evicted", broker=server.url, set_as_current=False)
    app.conf.broker_transport = TRANSPORT
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            app.send_task("evicted.work")
        BrokerClient(app.connection_for_write)().ping()
    app.close()
    (record,) = [one for one in caplog.records if "maxmemory-policy" in one.getMessage()]
    assert record.levelname == "WARNING"
    assert "messages may be lost" in record.getMessage()


def test_a_user_who_may_read_only_one_of_both_places_is_told(redis_factory: RedisFactory) -> None:
    # given users who may read INFO alone, the configuration alone, and neither
    server = server_with(redis_factory, "allkeys-lru")
    with server.client() as admin:
        for name, *allowed in (("a", "+info"), ("b", "+config|get"), ("c",)):
            admin.execute_command(
                "ACL", "SETUSER", name, "on", ">geheim", "~*", "&*", "+@all",
                "-info", "-config", *allowed,
            )  # fmt: skip
    found = {}
    for name in "abc":
        url = f"redis://{name}:geheim@127.0.0.1:{server.port}/0"
        with redis.Redis.from_url(url) as client:
            found[name] = memory_of(client)
    # then the former two know, and the last one does not
    memory = Memory("allkeys-lru", 100 << 20)
    assert found == {"a": memory, "b": memory, "c": None}
    # and none has tried what it may not do, where the server can be asked for that
    with server.client() as admin:
        if not admin.info("server")["redis_version"].startswith("6."):
            assert admin.acl_log() == []


def test_a_worker_whose_user_may_not_ask_works_and_says_so_once(
    redis_factory: RedisFactory, worker_factory: WorkerFactory
) -> None:
    # given a user who may ask for nothing that concerns the server
    server = redis_factory(appendonly=False)
    with server.client() as admin:
        admin.execute_command(
            "ACL", "SETUSER", "team", "on", ">geheim", "~*", "&*",
            "+@all", "-@admin", "-@dangerous",
        )  # fmt: skip
        url = f"redis://team:geheim@127.0.0.1:{server.port}/0"
        # when its worker's connections are cut, so that it connects anew
        worker = worker_factory(WORKER.format(url=url, transport=TRANSPORT), pool="solo")
        first = {one["id"] for one in admin.client_list() if one["user"] == "team"}
        admin.client_kill_filter(_type="normal", skipme=True)
        admin.client_kill_filter(_type="pubsub", skipme=True)

        def is_back() -> bool:
            there = [one for one in admin.client_list() if one["user"] == "team"]
            return any(int(one["sub"]) for one in there if one["id"] not in first)

        wait_until(is_back, 30, worker.log_tail)
    # then it is there, and has said once what it does not know
    assert worker.status == "running"
    assert worker.logs().count("does not tell its maxmemory-policy") == 1


def test_what_is_not_known_is_a_warning_of_a_worker(caplog: pytest.LogCaptureFixture) -> None:
    class Silent:
        def eval(self, *_: Any) -> None:
            pass

        def info(self, _: str) -> Any:
            raise NoPermissionError("no")

        config_get = info

    client: Any = Silent()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            eviction.check_worker(client, "redis://somewhere/0")
    assert caplog.text.count("redis://somewhere/0 does not tell its maxmemory-policy") == 1


def test_a_worker_that_comes_to_such_a_server_later_says_so_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Evicting:
        policy = "noeviction"

        def eval(self, *_: Any) -> None:
            pass

        def info(self, _: str) -> dict[str, Any]:
            return {"maxmemory": 1, "maxmemory_policy": self.policy}

    client: Any = Evicting()
    eviction.check_worker(client, "redis://one/0")
    client.policy = "allkeys-lru"
    eviction.check_worker(client, "redis://two/0")
    (record,) = [one for one in caplog.records if "redis://two/0" in one.getMessage()]
    assert record.levelname == "CRITICAL"
