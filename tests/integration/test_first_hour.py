"""What a new user forgets is told by real workers and senders."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cqrs_celery.app.first_sends import UnconsumedQueues, UnorderedSends
from tests import depot
from tests.depot import FillBox
from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY, WorkerNode
from tests.waiting import wait_until

#: An application whose CQRS was forgotten.
FORGOTTEN = """
    import os
    from celery import Celery
    from cqrs_celery import Command, command_handler

    app = Celery("note", broker=os.environ["TEST_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"

    class Take(Command, name="note.take"):
        pass

    @command_handler(Take)
    def take(command: Take) -> None: ...
"""

#: One whose handlers are found by their modules' names.
FOUND = """
    import os, sys
    from celery import Celery
    from cqrs_celery import CQRS

    sys.path.insert(0, os.environ["TEST_PATH"])
    app = Celery("note", broker=os.environ["TEST_URL"], backend=os.environ["TEST_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    cqrs = CQRS(app)
    cqrs.autodiscover(["note_shop"])
"""

HANDLERS = """
    from cqrs_celery import Command, command_handler

    class Found(Command, name="note.found"):
        pass

    @command_handler(Found)
    def found(command: Found) -> str:
        return "found"
"""


def test_a_worker_whose_cqrs_was_forgotten_says_so(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(FORGOTTEN, pool="solo", env={"TEST_URL": redis_url})
    told = (
        "the Celery app note has no CQRS, so nothing takes the messages of its 1 handlers and"
        " subscriptions (the first is"
    )
    wait_until(lambda: told in worker.logs(), 10, worker.log_tail)
    assert "Make one where the app is made: cqrs = CQRS(app)" in worker.logs()


def test_a_worker_with_only_celerys_own_queue_says_so(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    worker = worker_factory(
        "from tests.depot import app", pool="solo", queues=["celery"], env={"DEPOT_URL": redis_url}
    )
    told = (
        "this worker of depot consumes no queue of a handler or subscription: it consumes celery;"
        " those are depot."
    )
    wait_until(lambda: told in worker.logs(), 10, worker.log_tail)


def test_handlers_are_found_by_their_modules_name_and_their_queues_consumed(
    redis_url: str, worker_factory: WorkerFactory, tmp_path: Path
) -> None:
    # given a package with a module of handlers
    (tmp_path / "note_shop").mkdir()
    (tmp_path / "note_shop" / "__init__.py").touch()
    (tmp_path / "note_shop" / "handlers.py").write_text(textwrap.dedent(HANDLERS))
    # when a worker starts that imports nothing else
    env = {"TEST_URL": redis_url, "TEST_PATH": str(tmp_path)}
    worker_factory(FOUND, pool="solo", env=env)
    # then a command reaches it
    with depot.connected(redis_url) as cqrs:
        plain = {"type": "note.found", "version": 1, "data": {}}
        sent = cqrs.app.send_task("note.found", (plain,), queue="note.commands")
        assert sent.get(timeout=20)["value"] == "found"


def test_a_sender_is_told_once_that_nobody_takes_its_commands(
    redis_url: str, worker_factory: WorkerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    told = (
        "depot.fill_box was sent to the queue depot.commands, which no live worker consumes: it"
        " waits there. Start a worker that imports its handler, without -Q or with -Q"
        " depot.commands; `celery -A <app> cqrs queues` shows who consumes what"
    )
    with caplog.at_level(logging.WARNING), depot.connected(redis_url) as cqrs:
        # when commands are sent while no worker runs
        results = [cqrs.send_command(FillBox(id="alone", count=n)) for n in (1, 2)]
        # then that is told, once
        wait_until(lambda: told in caplog.messages, 10, "the warning")
        # when one has come, then its queue is consumed, and the next process is told of nothing
        worker: WorkerNode = worker_factory(
            "from tests.depot import app", pool="solo", env={"DEPOT_URL": redis_url}
        )
        assert [result.get(timeout=20)["value"] for result in results] == [1, 3]
        assert worker.status == "running"
        assert caplog.messages.count(told) == 1
        unconsumed = cqrs.runtime.sent
        assert isinstance(unconsumed, UnconsumedQueues)
        caplog.clear()
        unconsumed.look("depot.commands", "depot.fill_box")
        assert not caplog.messages


def test_a_sender_with_kombu_s_own_transport_is_told_once_that_order_is_lost(
    redis_url: str, worker_factory: WorkerFactory, caplog: pytest.LogCaptureFixture
) -> None:
    told = (
        "depot.fill_box was sent over Kombu's transport 'redis' to the queue depot.commands, which"
        " a worker with the reliable queue consumes: commands that are sent like this are in no"
        " order. Set broker_transport = 'cqrs_celery.transport:Transport' in this process too"
    )
    # given a worker with the reliable queue
    worker_factory("from tests.depot import app", pool="solo", env={"DEPOT_URL": redis_url})
    # when a process that forgot the transport sends to the same Redis
    with (
        caplog.at_level(logging.WARNING),
        depot.connected(redis_url, broker_transport="redis") as cqrs,
    ):
        results = [cqrs.send_command(FillBox(id="stock", count=n)) for n in (1, 2)]
        # then that is told, once, and the commands are carried out
        wait_until(lambda: told in caplog.messages, 10, lambda: str(caplog.messages))
        assert [bool(result.get(timeout=20)) for result in results] == [True, True]
        assert caplog.messages.count(told) == 1


def test_a_sender_whose_workers_have_kombu_s_own_transport_too_is_told_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    # given a process with Kombu's transport, and no worker with the reliable queue
    with (
        caplog.at_level(logging.WARNING),
        depot.connected(redis_url, broker_transport="redis") as cqrs,
    ):
        # when it has sent a command and looked
        cqrs.send_command(FillBox(id="stock", count=1))
        unordered = cqrs.runtime.sent
        assert isinstance(unordered, UnorderedSends)
        unordered.look("depot.commands", "depot.fill_box")
        # then nothing is logged
        assert not [line for line in caplog.messages if "depot.fill_box" in line]


SENDER = """
    import logging, sys
    from tests import depot

    logging.basicConfig(format="%(message)s")
    cqrs = depot.client(sys.argv[1])
    depot.FillBox(id="sent", count=1).delay()
"""


def test_a_script_that_sends_and_ends_is_told_too(redis_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SENDER), redis_url],
        capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY,
    )  # fmt: skip
    assert done.stderr.startswith(
        "depot.fill_box was sent to the queue depot.commands, which no live worker consumes"
    )
