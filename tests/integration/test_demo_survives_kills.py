"""The demonstration's worker, killed with -9 again and again: nothing is lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sample_app import read_model
from sample_app.data import read_orders
from sample_app.expected import compute
from tests.conftest import RedisFactory, watch
from tests.nodes import REPOSITORY, WorkerNode
from tests.waiting import wait_until

SEED = 20
KILLS = 10

#: Saves the second in which a starting worker looks for others.
ALONE = ("--without-mingle", "--without-gossip")

#: Sends every order as a command, waits for the outcomes, and says each, and what each event is of.
CLIENT = """
import json

from sample_app.app import cqrs
from sample_app.data import read_orders
from sample_app.orders import command_of

results = [command_of(order).delay() for order in read_orders()]
outcomes = {}
for result in results:
    found = result.get(timeout=60, propagate=False)
    is_refused = isinstance(found, Exception)
    outcomes[result.id] = type(found).__name__ if is_refused else found["position"]
events = {}
position = 0
while batch := cqrs.store.read_all(after_position=position):
    for stored in batch:
        position = stored.global_position
        events[position] = stored.event.metadata.causation_id
print(json.dumps({"outcomes": outcomes, "events": events}))
"""


@pytest.fixture
def environment(redis_factory: RedisFactory, tmp_path: Path) -> dict[str, str]:
    """Give the settings of an application that notices a dead worker within a second."""
    return {
        "REDIS_URL": redis_factory().url,
        "CQRS_LEASE_S": "1",
        read_model.VARIABLE: str(tmp_path / "stock.sqlite3"),
    }


@pytest.fixture
def worker(
    request: pytest.FixtureRequest, tmp_path: Path, environment: dict[str, str]
) -> Iterator[WorkerNode]:
    node = WorkerNode(tmp_path, "sample_app.app", concurrency=2, env=environment, arguments=ALONE)
    watch(request, node)
    yield node
    node.teardown()


@pytest.mark.timeout(240)  # half a minute, where the machine does nothing else
def test_every_command_has_its_effect_once_however_often_the_worker_is_killed(
    worker: WorkerNode, environment: dict[str, str], tmp_path: Path
) -> None:
    # given the shop's orders, sent by one process, carried out by a worker
    rng = random.Random(SEED)
    worker.start()
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        # when the worker is killed whenever it has done a little
        for _ in range(KILLS):
            worker.wait_ready()
            wait_for_events(worker, events_counted(tmp_path) + rng.randint(20, 250))
            assert client.poll() is None, "the client was done before the last kill"
            rng.choice([worker.kill, worker.kill_main])()
            worker.start()
        output, errors = client.communicate(timeout=150)
    finally:
        client.kill()
        client.communicate()
    assert client.returncode == 0, errors
    found = json.loads(output)
    expected = compute(read_orders())
    # then every order has its outcome, the refusals are the expected ones
    outcomes = found["outcomes"]
    refusals = [reason for reason in outcomes.values() if isinstance(reason, str)]
    assert len(outcomes) == len(read_orders())
    assert {reason: refusals.count(reason) for reason in refusals} == dict(expected.refused)
    # and every accepted command has caused one event, at the position that its outcome says
    positions = {str(p): command for command, p in outcomes.items() if isinstance(p, int)}
    assert found["events"] == positions
    # and the read model has each event once
    wait_for_events(worker, expected.events)
    assert stock(tmp_path) == {
        item_id: (item.name, item.count, item.is_active, item.version)
        for item_id, item in expected.items.items()
    }


def wait_for_events(worker: WorkerNode, number: int) -> None:
    """Wait until the read model has so many events."""
    wait_until(
        lambda: events_counted(worker.directory) >= number,
        30,
        lambda: f"{number} events; {events_counted(worker.directory)} came\n{worker.log_tail()}",
    )


def events_counted(directory: Path) -> int:
    return sum(row[3] for row in stock(directory).values())


def stock(directory: Path) -> dict[str, tuple[str, int, bool, int]]:
    """Read the read model, which a worker may be about to make."""
    if not (directory / "stock.sqlite3").exists():
        return {}
    database = sqlite3.connect(directory / "stock.sqlite3")
    try:
        rows = database.execute("SELECT id, name, count, is_active, version FROM stock").fetchall()
    except sqlite3.OperationalError:
        return {}
    finally:
        database.close()
    return {row[0]: (row[1], row[2], bool(row[3]), row[4]) for row in rows}
