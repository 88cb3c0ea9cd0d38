"""A worker takes snapshots off the commands' way; the commands take all anew, or delete them."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY
from tests.waiting import wait_until

SOURCE = """
    import os

    from celery import Celery
    from cqrs_celery import CQRS, Aggregate, Command, Event, Session, applies, command_handler

    app = Celery("shop", broker=os.environ["SHOP_BROKER"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    app.conf.broker_transport_options = {"lease_s": float(os.environ.get("SHOP_LEASE_S", 30))}
    app.conf.cqrs_snapshots = os.environ.get("SHOP_SNAPSHOTS", "task")
    app.conf.cqrs_event_store = os.environ.get("SHOP_STORE", "broker")
    app.conf.result_backend = os.environ["SHOP_BROKER"]
    cqrs = CQRS(app)

    class Counted(Event):
        pass

    class Counter(Aggregate, snapshot_every=10, snapshot_version=int(os.environ.get("SHOP_V", 1))):
        count: int = 0

        @applies(Counted)
        def _counted(self, event: Counted) -> None:
            self.count += 1

    class Plain(Aggregate):
        pass

    class Count(Command, aggregate=Counter, key="id"):
        id: str
        times: int

    @command_handler(Count)
    def count(command: Count, session: Session) -> int:
        counter = session.find(Counter, command.id) or Counter(command.id)
        session.add(counter)
        for _ in range(command.times):
            counter.record(Counted())
        return counter.count
"""
#: Takes its time, until a file is gone.
SLOW = """
    import time
    from pathlib import Path

    class Slow(Counter, name="Slow", snapshot_every=10):
        def to_snapshot(self) -> int:
            Path("taking").touch()
            while Path("closed").exists():
                time.sleep(0.01)
            return self.count

        def from_snapshot(self, state: int) -> None:
            self.count = state
"""
KEY = "cq:snapshots:shop:Counter"


@pytest.fixture
def client(redis_url: str) -> Any:
    return redis.Redis.from_url(redis_url)


@pytest.fixture
def shop(tmp_path: Path, redis_url: str):
    """Run Python, or the command line, in the application's folder."""
    (tmp_path / "shop.py").write_text(textwrap.dedent(SOURCE))

    def run(*arguments: str, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "SHOP_BROKER": redis_url, "PYTHONPATH": str(REPOSITORY),
                 **env},
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    return run


def cqrs(*arguments: str) -> list[str]:
    return ["-m", "celery", "-A", "shop", "cqrs", "snapshots", *arguments]


def fill(shop, count: int, times: int, **env: str) -> None:
    shop(
        "-c",
        "from shop import *\n"
        f"for n in range({count}): cqrs.execute(Count(id=str(n), times={times}))",
        **env,
    )


def test_a_worker_takes_snapshots_in_a_task_of_its_own(
    worker_factory: WorkerFactory, shop, client: Any, redis_url: str
) -> None:
    worker_factory(SOURCE, pool="solo", env={"SHOP_BROKER": redis_url})
    fill(shop, 1, 9)
    fill(shop, 1, 5)
    found = wait_until(lambda: client.hget(KEY, "0"), 20)
    assert found.split(b"\x1f")[:2] == [b"1", b"14"]
    # and the commands that it carries out ask for them, too
    shop("-c", "from shop import *\nprint(Count(id='7', times=25).delay().get(timeout=20))")
    found = wait_until(lambda: client.hget(KEY, "7"), 20)
    assert found.split(b"\x1f")[1] == b"25"


def test_a_snapshot_whose_worker_is_killed_over_it_is_taken_by_the_next_one(
    worker_factory: WorkerFactory, shop, client: Any, redis_url: str, tmp_path: Path
) -> None:
    # given a worker in the middle of taking a snapshot
    (tmp_path / "closed").touch()
    source = SOURCE + SLOW
    (tmp_path / "shop.py").write_text(textwrap.dedent(source))
    env = {"SHOP_BROKER": redis_url, "SHOP_LEASE_S": "1"}
    worker = worker_factory(source, pool="solo", env=env)
    shop(
        "-c",
        "from shop import *\n"
        "with cqrs.session() as session:\n"
        "    slow = Slow('1')\n"
        "    session.add(slow)\n"
        "    for _ in range(12): slow.record(Counted())",
    )
    wait_until((tmp_path / "taking").exists, 20)
    # when it is killed
    worker.kill()
    assert not client.exists("cq:snapshots:shop:Slow")
    (tmp_path / "closed").unlink()
    # then the next one takes it, without another commit
    worker_factory(source, pool="solo", env=env)
    found = wait_until(lambda: client.hget("cq:snapshots:shop:Slow", "1"), 20)
    assert found.split(b"\x1f")[1] == b"12"


def test_snapshots_are_taken_anew_from_the_events_alone(shop, client: Any) -> None:
    # given two of three that are due, one of which holds nonsense, and one that is not
    fill(shop, 2, 12, SHOP_SNAPSHOTS="commit")
    shop("-c", "from shop import *\ncqrs.execute(Count(id='few', times=3))")
    assert set(client.hgetall(KEY)) == {b"0", b"1"}
    client.hset(KEY, "0", b"1\x1f9999\x1f0\x1fnonsense")
    client.hset(KEY, "few", b"1\x1f3\x1f0\x1fnonsense")
    # when
    done = shop(*cqrs("rebuild", "--json"), SHOP_V="2")
    # then
    assert json.loads(done.stdout) == [
        {"aggregate": "Counter", "taken": 2, "not_due": 1, "failed": 0}
    ]
    assert "27 events read, 3 aggregates found" in done.stderr
    assert "taking 3 snapshots: 3 done" in done.stderr
    kept = {name: value.split(b"\x1f")[:2] for name, value in client.hgetall(KEY).items()}
    assert kept == {b"0": [b"2", b"12"], b"1": [b"2", b"12"]}


def test_all_aggregates_or_one_type(shop, client: Any) -> None:
    fill(shop, 3, 3)
    table = shop(*cqrs("rebuild", "--all", "--aggregate", "Counter")).stdout
    assert table.splitlines()[-1].split() == ["Counter", "3", "0", "0"]
    assert client.hlen(KEY) == 3
    assert (
        "no aggregate Plain with snapshots"
        in shop(*cqrs("rebuild", "--aggregate", "Plain"), code=2).stderr
    )


def test_one_that_can_not_be_rebuilt_is_named_and_the_others_are_taken(shop, client: Any) -> None:
    fill(shop, 2, 12)
    client.lset("cq:stream:shop:Counter:0", 3, client.lindex("cq:stream:shop:Counter:0", 7))
    done = shop(*cqrs("rebuild", "--json"), code=1)
    assert json.loads(done.stdout)[0] == {
        "aggregate": "Counter", "taken": 1, "not_due": 0, "failed": 1,
    }  # fmt: skip
    assert "Counter-0: EventOutOfOrder" in done.stderr


def test_snapshots_are_deleted(shop, client: Any) -> None:
    fill(shop, 3, 12, SHOP_SNAPSHOTS="commit")
    assert client.hlen(KEY) == 3
    assert "use --yes" in shop(*cqrs("drop", "--json"), code=2).stderr
    shop(*cqrs("drop"), code=1)
    assert client.hlen(KEY) == 3
    done = shop(*cqrs("drop", "--yes", "--json"))
    assert json.loads(done.stdout) == [{"aggregate": "Counter", "deleted": 3}]
    assert "deleting 3 snapshots: 3 done" in done.stderr
    assert not client.exists(KEY)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql", "redis"])
def test_every_store_has_its_snapshots_taken_anew_and_deleted(
    shop, tmp_path: Path, request: pytest.FixtureRequest, engine: str
) -> None:
    # given a store in which two of three aggregates are due
    env = {"SHOP_SNAPSHOTS": "off"}
    if engine == "sqlite":
        env["SHOP_STORE"] = f"sqlite:///{tmp_path}/shop.db"
    elif engine == "postgresql":
        node = request.getfixturevalue("postgres_node")
        env["SHOP_STORE"] = node.create_database("snapshot_commands")
        request.addfinalizer(lambda: node.drop_database("snapshot_commands"))
    if engine != "redis":
        shop("-m", "celery", "-A", "shop", "cqrs", "schema", "create", **env)
    fill(shop, 2, 12, **env)
    shop("-c", "from shop import *\ncqrs.execute(Count(id='few', times=3))", **env)
    env["SHOP_SNAPSHOTS"] = "commit"
    listed = (
        "from shop import *; snapshots = cqrs.store.snapshots()\n"
        "print(sorted((s.aggregate_id, snapshots.find(s).version)"
        " for s in snapshots.streams('shop', 'Counter')))"
    )
    assert shop("-c", listed, **env).stdout == "[]\n"
    # when
    done = shop(*cqrs("rebuild", "--json"), **env)
    # then
    assert json.loads(done.stdout)[0] == {
        "aggregate": "Counter", "taken": 2, "not_due": 1, "failed": 0,
    }  # fmt: skip
    assert "27 events read, 3 aggregates found" in done.stderr
    assert "taking 3 snapshots: 3 done" in done.stderr
    assert shop("-c", listed, **env).stdout == "[('0', 12), ('1', 12)]\n"
    # and when
    done = shop(*cqrs("drop", "--yes", "--json"), **env)
    # then
    assert json.loads(done.stdout) == [{"aggregate": "Counter", "deleted": 2}]
    assert "deleting 2 snapshots: 2 done" in done.stderr
    assert shop("-c", listed, **env).stdout == "[]\n"


def test_where_there_are_none_that_is_said(shop) -> None:
    done = shop(*cqrs("drop", "--yes"), code=2, SHOP_SNAPSHOTS="off")
    assert "cqrs_snapshots is 'off'" in done.stderr
