"""The demonstration and the running sample, as a user starts them."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil
import pytest

from sample_app import read_model
from sample_app.data import SHOP, read_orders
from sample_app.expected import compute
from tests.conftest import require_server
from tests.guardian import guardian, kill_group
from tests.nodes import REPOSITORY, free_port
from tests.waiting import wait_until

#: Starts a module of the sample: its name, its arguments; then what Popen takes.
Start = Callable[..., subprocess.Popen]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start programs of the sample; whatever is left of them after the test is killed."""
    require_server()
    started: list[subprocess.Popen] = []
    # Whoever starts the tests in the background has them, and all that they start, ignore Ctrl-C.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(module: str, *arguments: object, **options: Any) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", f"sample_app.{module}", *map(str, arguments)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **options,
        )
        guardian().watch(process.pid)
        started.append(process)
        return process

    yield start
    for process in started:
        for child in descendants(process):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        kill_group(process.pid)
        guardian().forget(process.pid)
        process.communicate()
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def few_orders(tmp_path: Path) -> Path:
    """Give a file with the shop's first 300 orders."""
    path = tmp_path / "few.jsonl"
    lines = SHOP.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:300]), encoding="utf-8")
    return path


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def names(processes: list[psutil.Process]) -> list[str]:
    """Return which of some processes still run; one that waits for its parent does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


@pytest.mark.timeout(240)  # a quarter of a minute, where the machine does nothing else
def test_the_demo_shows_the_stock_and_that_it_is_right(start: Start) -> None:
    # when the demo runs
    process = start("demo")
    output, _ = process.communicate(timeout=200)
    # then it ends well
    assert process.returncode == 0, output
    expected = compute(read_orders())
    # and shows the stock: the item that moved most, with its count and events
    item_id, item = max(expected.items.items(), key=lambda pair: pair[1].version)
    row = next(line for line in output.splitlines() if item_id in line)
    assert re.findall(r"│ +(\d+)", row) == [str(item.count), str(item.version)]
    assert f"and {len(expected.items) - 15} more" in output
    # and how many commands were refused, and why
    refused = dict(re.findall(r"│ ([A-Za-z]+) +│ (\d+) +│", output))
    together = str(expected.refused.total())
    assert refused == {**{k: str(v) for k, v in expected.refused.items()}, "together": together}
    # and that all of it is as computed directly
    assert "The read model equals the direct computation" in output
    assert f"{expected.events} events" in output


def test_a_read_model_that_is_wrong_fails_the_demo_with_the_difference(
    start: Start, tmp_path: Path, few_orders: Path
) -> None:
    # given a read model that counts one item wrong
    expected = compute(read_orders(few_orders))
    item_id, item = max(expected.items.items(), key=lambda pair: pair[1].version)
    database = sqlite3.connect(tmp_path / "stock.sqlite3")
    database.execute(read_model.SCHEMA)
    database.execute(
        "CREATE TRIGGER falsify AFTER INSERT ON stock"
        f" WHEN new.id = '{item_id}' BEGIN UPDATE stock SET count = 1 WHERE id = new.id; END"
    )
    database.close()
    # when the demo keeps that one
    process = start("demo", "--directory", tmp_path, "--orders", few_orders)
    output, _ = process.communicate(timeout=60)
    # then it fails, and says where
    assert process.returncode == 1, output
    text = " ".join(output.split())
    assert f"{item_id}: expected ('{item.name}', {item.count}, True, {item.version})" in text
    assert f"found ('{item.name}', {item.count + 1}, True, {item.version})" in text
    assert "The read model differs from the direct computation." in text
    # and names no other item
    assert text.count(": expected ") == 1


def test_ctrl_c_ends_the_demo_and_everything_it_has_started(start: Start, tmp_path: Path) -> None:
    # given a demo in the middle of its work
    process = start("demo", "--directory", tmp_path)
    log = tmp_path / "worker.log"
    wait_until(lambda: log.exists() and "succeeded" in log.read_text(), 30, "the first outcome")
    processes = descendants(process)
    assert len(processes) >= 4  # the server and its guardian, the worker and its pool
    # when it is interrupted
    process.send_signal(signal.SIGINT)
    # then it ends, and nothing of it is left
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130, output
    wait_until(lambda: not names(processes), 10, lambda: f"the end of {names(processes)}")


def test_a_worker_that_dies_fails_the_demo_with_its_last_words(
    start: Start, tmp_path: Path
) -> None:
    # given a demo in the middle of its work
    process = start("demo", "--directory", tmp_path)
    log = tmp_path / "worker.log"
    wait_until(lambda: log.exists() and "succeeded" in log.read_text(), 30, "the first outcome")
    # when its worker is killed
    workers = [p for p in descendants(process) if "worker" in p.cmdline()]
    workers[0].kill()
    # then it does not wait for ever
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output
    assert "The worker has ended with -9." in output
    assert "succeeded" in output


def test_run_keeps_a_worker_and_flower_until_it_is_ended(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a machine where no server answers at the configured URL
    port, flower_port = free_port(), free_port()
    monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{port}/0")
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")
    monkeypatch.delenv(read_model.VARIABLE, raising=False)
    # when the sample is run
    process = start("run", "--directory", tmp_path, "--flower-port", flower_port)
    # then it says where what is, and sends the first run's orders
    assert process.stdout is not None
    said = "".join(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
    assert f"redis://:**@127.0.0.1:{port}/0 (embedded" in said
    assert f"http://127.0.0.1:{flower_port}" in said
    assert f"{len(read_orders())} commands" in said
    # and Flower knows the worker's queues, and can count them

    def ask(path: str) -> Any:
        assert process.poll() is None, process.communicate()[0]
        with (
            suppress(URLError, ConnectionError),
            urllib.request.urlopen(
                f"http://127.0.0.1:{flower_port}/api/{path}", timeout=5
            ) as answer,
        ):
            return json.load(answer)

    def queues() -> set[str]:
        found = ask("queues/length") or {"active_queues": []}
        return {queue["name"] for queue in found["active_queues"]}

    wait_until(lambda: {"inventory.commands", "inventory.stock"} <= queues(), 40, "Flower")
    # and the read model fills
    wait_until((tmp_path / "stock.sqlite3").exists, 30, "the read model")
    database = sqlite3.connect(f"file:{tmp_path / 'stock.sqlite3'}?mode=ro", uri=True)
    try:
        wait_until(lambda: count(database) > 100, 30, "a hundred events in the read model")
    finally:
        database.close()
    processes = descendants(process)
    # and SIGTERM ends all of it
    process.terminate()
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 0, output
    wait_until(lambda: not names(processes), 10, lambda: f"the end of {names(processes)}")


def count(database: sqlite3.Connection) -> int:
    with suppress(sqlite3.OperationalError):  # the table is still to come
        return int(database.execute("SELECT coalesce(sum(version), 0) FROM stock").fetchone()[0])
    return 0
