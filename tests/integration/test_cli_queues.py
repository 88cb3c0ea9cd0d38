"""`celery -A app cqrs queues` shows where every message is, for plain Celery applications too."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from flower.utils.broker import Broker
from kombu import Exchange, Queue, pools

from cqrs_celery.cli import cqrs
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination, LetterPolicy, bury, later
from cqrs_celery.transport import TRANSPORT
from tests.nodes import REPOSITORY, RedisNode, free_port
from tests.queues import Worker
from tests.waiting import wait_until

TASK = "shop.pack"


def run_cli(app: celery.Celery, *arguments: str) -> Result:
    """Run `celery -A app cqrs …` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(cqrs, arguments, obj=context)


def json_of(app: celery.Celery, *arguments: str) -> Any:
    """Run a command that prints JSON, and return what it printed."""
    result = run_cli(app, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@contextmanager
def application(url: str, transport: str = TRANSPORT, **settings: Any) -> Iterator[celery.Celery]:
    """Make an application whose broker is ours, or stock Redis with the transport `redis`."""
    app = celery.Celery("shop", broker=url, set_as_current=False)
    app.conf.update(broker_transport=transport, worker_hijack_root_logger=False, **settings)
    app.conf.task_queues = [
        Queue("orders", Exchange(""), routing_key="orders"),
        Queue("mail", Exchange("things", type="topic"), routing_key="order.*"),
        Queue("ledger", Exchange("things", type="topic"), routing_key="order.#"),
    ]
    app.conf.task_default_queue = "orders"
    try:
        yield app
    finally:
        app.close()
        # Else the next test gets a connection that believes its queues to be declared.
        pools.reset()


@pytest.fixture
def app(redis_url: str) -> Iterator[celery.Celery]:
    """Give an application on the reliable queue."""
    with application(redis_url) as app:
        yield app


@contextmanager
def queue_of(app: celery.Celery) -> Iterator[ReliableQueue]:
    """Give the queue behind an application."""
    with app.connection_for_write() as connection:
        yield connection.channel().queue


def send(app: celery.Celery, *numbers: int, **options: Any) -> None:
    for number in numbers:
        app.send_task(TASK, (number,), queue=options.pop("queue", "orders"), **options)


def in_sequence(app: celery.Celery, sequence: str, *numbers: int, **options: Any) -> None:
    send(app, *numbers, headers={"cqrs_sequence": sequence}, **options)


@pytest.fixture
def stirred(app: celery.Celery) -> Iterator[celery.Celery]:
    """Give an application with messages in every state."""
    send(app, 1, 2)
    send(app, 3, priority=6)
    send(app, 4, countdown=60, queue="mail")
    with queue_of(app) as queue:
        queue.letters.set_policy("orders", LetterPolicy())
        in_sequence(app, "held", 10, 11, 12)
        worker = Worker(queue, "anna@host", ["orders"])  # type: ignore[arg-type]
        taken = worker.take(4)
        assert [one.sequence for one in taken] == ["", "", "held", ""]
        in_sequence(app, "dead", 20, 21)
        (dead,) = worker.take(1)
        worker.end(bury, [dead], "{}")
        in_sequence(app, "later", 30, 31, 32)
        (first,) = worker.take(1)
        worker.end(later, [first], 50_000)
        in_sequence(app, "ready", 40, 41)
        send(app, 5)
        yield app


def test_each_message_is_counted_where_it_is(stirred: celery.Celery) -> None:
    # when the queues are shown
    rows = {row["queue"]: row for row in json_of(stirred, "queues")}
    # then every state has its column
    age = rows["orders"].pop("oldest_s")
    lease_s = rows["orders"]["holders"][0].pop("lease_s")
    assert 0 <= age < 60
    assert 500 < lease_s <= 600
    assert rows["orders"] == {
        "queue": "orders",
        "ready": 2,
        "waiting": 3,
        "retrying": 3,
        "blocked": 1,
        "delayed": 0,
        "in_flight": 4,
        "dead": 1,
        "holders": [{"consumer": "anna@host", "messages": 4}],
    }
    assert (rows["mail"]["ready"], rows["mail"]["delayed"]) == (0, 1)


def test_the_table_has_its_numbers_below_their_heads(stirred: celery.Celery) -> None:
    lines = run_cli(stirred, "queues").output.splitlines()
    head = ["queue", "ready", "waiting", "retrying", "blocked", "delayed", "in", "flight"]
    assert lines[0].split() == [*head, "dead", "oldest"]
    (orders,) = [line for line in lines if line.startswith("orders")]
    assert orders.split()[1:8] == ["2", "3", "3", "1", "0", "4", "1"]
    assert lines[0].index("delayed") + len("delayed") == orders.index("0 ") + 1


def test_holders_are_shown_with_their_leases(stirred: celery.Celery) -> None:
    lines = run_cli(stirred, "queues", "--holders").output.splitlines()
    assert lines[0].split() == ["queue", "consumer", "messages", "lease", "ends", "in"]
    assert lines[2].split()[:3] == ["orders", "anna@host", "4"]
    assert len(lines) == 3


def test_delayed_messages_and_sequences_are_listed_by_their_time(stirred: celery.Celery) -> None:
    found = json_of(stirred, "queues", "--delayed")
    assert [(f["queue"], f["task"], f["sequence"]) for f in found] == [
        ("mail", TASK, ""),
        ("orders", TASK, "later"),
    ]
    assert 50 < found[0]["due_in_s"] <= 60
    assert 40 < found[1]["due_in_s"] <= 50
    assert TASK in run_cli(stirred, "queues", "--delayed").output


def test_an_empty_broker_and_queues_of_fanout_show_nothing(app: celery.Celery) -> None:
    # given only queues of remote control and events
    with app.connection_for_read() as connection:
        channel = connection.channel()
        Queue("all", Exchange("celeryev", type="fanout"), auto_delete=True)(channel).declare()
        app.control.mailbox.get_reply_queue()(channel).declare()
        # then none is listed
        assert run_cli(app, "queues").output == "nothing\n"
        assert json_of(app, "queues") == []


def test_a_message_of_a_stock_producer_and_an_unreadable_one_are_counted_without_age(
    app: celery.Celery,
) -> None:
    with queue_of(app) as queue:
        queue.declare("orders")
        queue.client.lpush("orders", '{"body": ""}', "no message")
    (row,) = json_of(app, "queues")
    assert (row["ready"], row["oldest_s"]) == (2, None)


def test_the_age_of_an_event_is_that_of_its_recording(app: celery.Celery) -> None:
    recorded = datetime.now(UTC) - timedelta(minutes=5)
    with queue_of(app) as queue:
        body = json.dumps({"timestamp": recorded.isoformat()})
        queue.publish([Destination("orders", "{}", "s-1")], body=body)
    (row,) = json_of(app, "queues")
    assert 299 < row["oldest_s"] < 360


@pytest.mark.parametrize("prefix", ["", "{shop}[*]."])
def test_flower_and_a_passive_declaration_count_what_a_free_worker_could_take(
    redis_url: str, prefix: str
) -> None:
    # given messages in every priority, of a stock producer, and four in one sequence
    options = {"global_keyprefix": prefix}
    with application(redis_url, broker_transport_options=options) as app:
        for priority in range(10):
            send(app, priority, priority=priority)
        in_sequence(app, "one", 1, 2, 3, 4)
        send(app, 1, countdown=60)
        with queue_of(app) as queue:
            queue.client.lpush(f"{prefix}orders", "{}")
        # then everybody counts a sequence once, and nothing that is delayed
        broker = Broker(redis_url, broker_options=options)
        assert asyncio.run(broker.queues(["orders"])) == [{"name": "orders", "messages": 12}]
        with app.connection_for_read() as connection:
            declared = connection.channel().queue_declare("orders", passive=True)
        assert declared.message_count == 12
        (row,) = json_of(app, "queues")
        assert (row["ready"], row["waiting"], row["delayed"]) == (12, 3, 1)


def test_a_broker_that_is_not_ours_is_refused_with_what_to_set(redis_url: str) -> None:
    url = redis_url.replace("redis://", "redis://:secret@")
    with application(url, "redis") as app:
        result = run_cli(app, "queues")
    assert result.exit_code == 2
    assert "is not the reliable queue: set broker_transport = " in result.output
    assert repr(TRANSPORT) in result.output
    assert "secret" not in result.output


@pytest.mark.parametrize("command", [("queues",), ("move-queues", "--from-stock")])
def test_a_broker_that_is_away_is_one_clear_error_without_its_password(
    command: Sequence[str],
) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    with application(url) as app:
        result = run_cli(app, *command)
    assert result.exit_code == 1
    assert result.output.startswith("Error: the broker redis://:**@127.0.0.1:")
    assert "does not answer" in result.output
    assert "Traceback" not in result.output
    assert "secret" not in result.output


def test_a_broker_that_refuses_the_password_says_so_without_it(redis_factory: Any) -> None:
    node: RedisNode = redis_factory()
    node.client().config_set("requirepass", "secret")
    try:
        with application(node.url.replace("redis://", "redis://:wrong@")) as app:
            result = run_cli(app, "queues")
    finally:
        with node.client(password="secret") as client:
            client.config_set("requirepass", "")
    assert result.exit_code == 1
    assert "does not answer" in result.output
    assert "secret" not in result.output
    assert "wrong" not in result.output.replace("wrong password", "").replace("WRONGPASS", "")


def test_celery_has_the_command_for_any_application(
    app: celery.Celery, redis_url: str, tmp_path: Path
) -> None:
    # given an application that uses the transport alone, by its scheme
    send(app, 1)
    (tmp_path / "plain.py").write_text(
        "import cqrs_celery.transport\n"
        "from celery import Celery\n"
        f"app = Celery('plain', broker={'reliable-' + redis_url!r})\n"
    )
    # when its queues are asked for
    command = [sys.executable, "-m", "celery", "-A", "plain", "cqrs", "queues"]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    # then they are shown
    assert run.stdout.splitlines()[2].split()[:2] == ["orders", "1"], run.stderr
    assert run.stderr == ""


def test_what_a_worker_runs_is_in_flight_under_its_name(
    app: celery.Celery, redis_url: str, worker_factory: Any
) -> None:
    # given a worker that runs one task, another one behind it
    source = f"""
        import time
        from celery import Celery
        app = Celery("slow", broker={redis_url!r})
        app.conf.update(broker_transport={TRANSPORT!r}, task_acks_late=True)

        @app.task(name={TASK!r})
        def pack(number): time.sleep(60)
    """
    send(app, 1, 2)
    worker_factory(source, pool="solo", queues=["orders"], arguments=["--without-mingle"])
    # then both are in flight, and its lease has some of its 30 seconds left
    (row,) = wait_until(
        lambda: [row for row in json_of(app, "queues") if row["in_flight"] == 2], 10, "a taker"
    )
    assert row["ready"] == 0
    assert 0 < row["holders"][0]["lease_s"] <= 30


@pytest.mark.parametrize("version", [None, "7.0.15"])
def test_the_rights_in_the_reference_suffice_for_every_command(
    redis_factory: Any, version: str | None
) -> None:
    # given a user with the rights that the page on keys grants for this server, or for Redis 7.0
    page = (REPOSITORY / "docs/reference/redis-keys.md").read_text(encoding="utf-8")
    (source,) = re.findall(r'```python title="acl.py"\n(.*?)```', page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(source, names)
    node: RedisNode = redis_factory()
    with node.client() as admin:
        server: Any = admin.info("server")
        allowed = names["rule"]("{shop}.", version or server["redis_version"])
        admin.execute_command("ACL", "SETUSER", "shop", "on", ">secret", *allowed)
        admin.hset("{shop}.unacked", "tag", json.dumps([{"properties": {}}, "", "orders"]))
    url = node.url.replace("redis://", "redis://shop:secret@")
    options = {"global_keyprefix": "{shop}."}
    with application(url, broker_transport_options=options) as app:
        for number in range(2):
            in_sequence(app, "s", number)
            send(app, number, countdown=60, priority=6)
        # then every command may do what it does
        for command in (
            ["queues"],
            ["queues", "--delayed"],
            ["move-queues", "--from-stock", "--yes"],
            ["move-queues", "--to-stock", "--yes"],
            ["move-queues", "--from-stock", "--yes"],
        ):
            result = run_cli(app, *command)
            assert result.exit_code == 0, (command, result.output)
        (row,) = json_of(app, "queues")
        assert (row["ready"], row["waiting"], row["delayed"]) == (2, 1, 2)
