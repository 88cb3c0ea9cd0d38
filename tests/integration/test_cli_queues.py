"""`celery -A app cqrs queues` shows where every message is, for plain Celery applications too."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
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

from cqrs_celery import CQRS
from cqrs_celery.cli import cqrs as commands
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination, LetterPolicy, bury, later
from cqrs_celery.transport import TRANSPORT
from tests import mill
from tests.milling import start
from tests.nodes import REPOSITORY, RedisNode, free_port
from tests.queues import Worker
from tests.waiting import wait_until

TASK = "shop.pack"


def run_cli(app: celery.Celery, *arguments: str) -> Result:
    """Run `celery -A app cqrs …` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(commands, arguments, obj=context)


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
    for age in ("oldest_s", "oldest_running_s"):
        assert 0 <= rows["orders"].pop(age) < 60
    lease_s = rows["orders"]["holders"][0].pop("lease_s")
    assert 500 < lease_s <= 600
    assert rows["orders"] == {
        "queue": "orders",
        "ready": 2,
        "waiting": 3,
        "retrying": 3,
        "blocked": 1,
        "delayed": 0,
        "in_flight": 4,
        "prefetched": 0,
        "running": 4,
        "dead": 1,
        "oldest_prefetched_s": None,
        "paused": False,
        "consumers": ["anna@host"],
        "holders": [
            {
                "consumer": "anna@host",
                "worker": None,
                "host": None,
                "pid": None,
                "slots": None,
                "messages": 4,
                "running": 4,
                "prefetched": 0,
            }
        ],
    }
    assert (rows["mail"]["ready"], rows["mail"]["delayed"]) == (0, 1)


def test_the_table_has_its_numbers_below_their_heads(stirred: celery.Celery) -> None:
    lines = run_cli(stirred, "queues").output.splitlines()
    head = ["queue", "ready", "waiting", "retrying", "blocked", "delayed", "prefetched", "running"]
    assert lines[0].split() == [*head, "dead", "consumers", "oldest", "oldest", "run"]
    (orders,) = [line for line in lines if line.startswith("orders")]
    assert orders.split()[1:10] == ["2", "3", "3", "1", "0", "0", "4", "1", "1"]
    assert lines[0].index("delayed") + len("delayed") == orders.index("0 ") + 1
    assert len(lines[0]) + len("a.subscription") - len("orders") <= 120


def test_holders_are_shown_with_their_leases(stirred: celery.Celery) -> None:
    lines = run_cli(stirred, "queues", "--holders").output.splitlines()
    head = ["queue", "consumer", "worker", "slots", "messages", "running", "prefetched"]
    assert lines[0].split() == [*head, "lease", "ends", "in"]
    assert lines[2].split()[:5] == ["orders", "anna@host", "4", "4", "0"]
    assert len(lines) == 3


def test_a_queue_with_messages_that_no_live_worker_consumes_is_named(app: celery.Celery) -> None:
    # given two queues with messages, one without, and one with dead letters alone
    send(app, 1)
    send(app, 2, queue="mail", countdown=60)
    send(app, 3, queue="dead")
    with queue_of(app) as queue:
        queue.declare("empty")
        worker = Worker(queue, "anna", ["orders", "dead"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(1, queues=["dead"]), "{}")
        queue.consume("anna", ["orders"])
        # then the one that nobody consumes is
        lines = run_cli(app, "queues").output.splitlines()
        assert lines[-2:] == ["", "no worker consumes: mail"]
        # and both are as soon as the worker has not been heard of for its lease
        queue.client.zadd(queue.key("consumers"), {"anna": 1})
    assert run_cli(app, "queues").output.splitlines()[-1] == "no worker consumes: mail, orders"
    rows = {row["queue"]: row["consumers"] for row in json_of(app, "queues")}
    assert rows == {"dead": [], "empty": [], "mail": [], "orders": []}


def test_a_name_that_nobody_consumes_cannot_command_the_terminal(app: celery.Celery) -> None:
    send(app, 1, queue="or\x1b[2Jders\nmail")
    lines = run_cli(app, "queues").output.splitlines()
    assert lines[-1] == "no worker consumes: or\\x1b[2Jders\\nmail"


def aged(*ages_s: float) -> list[str]:
    """Return messages that were sent so many seconds ago."""
    return [json.dumps({"properties": {"timestamp": time.time() - age}}) for age in ages_s]


def test_each_state_has_the_age_of_its_oldest_message(app: celery.Celery) -> None:
    # given a worker of one slot that holds two of a sequence of three, and a plain one
    with queue_of(app) as queue:
        payloads = aged(500, 400, 300)
        queue.publish([Destination("orders", one, "s") for one in payloads])
        queue.publish([Destination("orders", aged(200)[0])])
        worker = Worker(queue, "anna", ["orders"], {"slots": 1})  # type: ignore[arg-type]
        assert len(worker.take(2, run=2)) == 3
        # then the first of the sequence runs, its second is prefetched, its third waits
        (row,) = json_of(app, "queues")
        assert [row["ready"], row["waiting"], row["prefetched"], row["running"]] == [0, 1, 2, 1]
        assert row["in_flight"] == 3
        found = [row["oldest_running_s"], row["oldest_prefetched_s"], row["oldest_s"]]
        assert [round(age, -2) for age in found] == [500, 400, 300]
        # and what is ready counts with what waits
        queue.publish([Destination("orders", aged(900)[0])])
        (row,) = json_of(app, "queues")
        assert round(row["oldest_s"], -2) == 900


def test_what_is_ready_is_counted_without_being_looked_at(app: celery.Celery, data: Any) -> None:
    # given many that are ready, and few in flight
    def cost(*ready: int) -> int:
        with queue_of(app) as queue:
            queue.publish([Destination("orders", "{}") for _ in ready])
            data.config_resetstat()
            json_of(app, "queues")
            stats = data.info("commandstats")
        return sum(one["calls"] for name, one in stats.items() if name != "cmdstat_info")

    with queue_of(app) as queue:
        queue.publish([Destination("orders", "{}") for _ in range(9)])
        Worker(queue, "anna", ["orders"], {"slots": 1}).take(8)  # type: ignore[arg-type]
    few = cost()
    # then the commands are as many as without them
    assert cost(*range(2_000)) <= few + 2


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


@pytest.mark.parametrize(
    "command",
    [
        ("queues",),
        ("dead-letters", "list"),
        ("subscriptions", "list"),
        ("move-queues", "--to-stock"),
    ],
)
@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lease_s": 0}, "broker_transport_options['lease_s'] is 0; accepted: a number from 0.5"),
        ({"socket_timout": 5}, "did you mean 'socket_timeout'?"),
        ("lease_s=5", "broker_transport_options is 'lease_s=5'; accepted: a dict"),
    ],
)
def test_wrong_transport_options_are_one_clear_error(
    options: Any, text: str, command: Sequence[str]
) -> None:
    with application("redis://localhost:1/0", broker_transport_options=options) as app:
        result = run_cli(app, *command)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert text in result.output
    assert len(result.output.splitlines()) == 1


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


#: A worker of one task, which says that it has begun, and waits for the gate.
SLOW = f"""
    import os, redis
    from celery import Celery
    url = os.environ["BROKER"]
    app = Celery("slow", broker=url)
    app.conf.update(broker_transport={TRANSPORT!r}, task_acks_late=True)

    @app.task(name={TASK!r})
    def pack(number):
        with redis.Redis.from_url(url, socket_timeout=None) as client:
            client.rpush("begun", number)
            client.blpop("gate")
"""


def begun(data: Any) -> list[int]:
    return sorted(int(number) for number in data.lrange("begun", 0, -1))


def row_when(app: celery.Celery, **expected: int) -> dict[str, Any]:
    """Wait until a queue has these numbers; return all that is shown of it."""
    rows: list[dict[str, Any]] = []

    def found() -> list[dict[str, Any]]:
        rows[:] = json_of(app, "queues")
        return [row for row in rows if expected.items() <= row.items()]

    (row,) = wait_until(found, 20, lambda: f"{expected} in {rows}")
    return dict(row)


@pytest.mark.parametrize(
    ("pool", "concurrency", "running"), [("solo", 1, 1), ("prefork", 2, 2), ("threads", 2, 2)]
)
def test_what_a_worker_runs_and_what_it_has_prefetched_is_told_apart(
    app: celery.Celery,
    data: Any,
    redis_url: str,
    worker_factory: Any,
    pool: str,
    concurrency: int,
    running: int,
) -> None:
    # given a worker whose every slot has a task, and ten tasks
    send(app, *range(10))
    worker = worker_factory(
        SLOW, pool=pool, concurrency=concurrency, queues=["orders"],
        arguments=["--without-mingle"], env={"BROKER": redis_url},
    )  # fmt: skip
    # then as many are running as have begun, and the rest of its prefetch waits in it
    total = 4 * concurrency
    row = row_when(app, in_flight=total, running=running, prefetched=total - running)
    wait_until(lambda: len(begun(data)) == running, 20, "the tasks")
    assert row["ready"] == 10 - total
    assert row["oldest_s"] is not None
    assert row["oldest_prefetched_s"] is not None
    assert row["oldest_running_s"] is not None
    (holder,) = row["holders"]
    assert 0 < holder.pop("lease_s") <= 30
    assert [holder.pop("consumer")] == row["consumers"]
    assert holder == {
        "worker": worker.hostname,
        "host": os.uname().nodename,
        "pid": worker.pid,
        "slots": concurrency,
        "messages": total,
        "running": running,
        "prefetched": total - running,
    }
    # and once one is done, another one is running
    data.rpush("gate", "open")
    wait_until(lambda: len(begun(data)) == running + 1, 20, "the next one")

    def is_told() -> bool:
        (row,) = json_of(app, "queues")
        return bool(row["ready"] + row["in_flight"] == 9 and row["running"] == running)

    wait_until(is_told, 20, "nine to be left, and as many to be running")


def test_of_batches_the_first_is_running_and_the_others_are_prefetched(
    app: celery.Celery, cqrs: CQRS, data: Any, redis_url: str, worker_factory: Any
) -> None:
    # given a subscription with batches of a hundred, and two events each of 125 aggregates
    start(worker_factory, redis_url).kill()
    with cqrs.session() as session:
        for n in range(125):
            sack = mill.Sack(f"s{n}")
            sack.record(mill.Ground(grams=1))
            sack.record(mill.Ground(grams=2))
            session.add(sack)
    # when a worker handles the first of them
    data.set("hold", 1)
    start(worker_factory, redis_url, queues=["mill.ledger"], pool="solo", concurrency=1)
    wait_until(lambda: data.lrange("batches", 0, -1), 20, "the first batch")
    # then its hundred events are running, those of the next are prefetched, all with their ages
    row = row_when(app, in_flight=200, running=100, prefetched=100, ready=0, waiting=50)
    assert row["queue"] == "mill.ledger"
    assert data.lrange("batches", 0, -1) == [b"100"]
    for age in ("oldest_s", "oldest_prefetched_s", "oldest_running_s"):
        assert 0 <= row[age] < 60


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
        with queue_of(app) as queue:
            send(app, 0)
            worker = Worker(queue, "anna", ["orders"])  # type: ignore[arg-type]
            worker.end(bury, worker.take(), "{}")
            queue.leave("anna")
            queue.pause(["orders"])
            queue.resume(["orders"])
        for number in range(2):
            in_sequence(app, "s", number)
            send(app, number, countdown=60, priority=6)
        # then every command may do what it does
        for command in (
            ["dead-letters", "list"],
            ["dead-letters", "discard", "--all", "--yes"],
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


@pytest.mark.parametrize("transport", [TRANSPORT, "redis"])
@pytest.mark.parametrize(("seconds", "age_s"), [(3_600, None), (-300, 300)])
def test_a_task_with_an_eta_ages_from_its_time_whoever_sent_it(
    redis_url: str, app: celery.Celery, transport: str, seconds: int, age_s: int | None
) -> None:
    # given a task that was sent an hour ago, with a time to run
    with queue_of(app) as queue:
        queue.declare("orders")
    eta = datetime.now(UTC) + timedelta(seconds=seconds)
    with application(redis_url, transport) as sender:
        sent_at = time.time() - 3_600
        sender.send_task(TASK, eta=eta, timestamp=sent_at)
    # then it is no older than that time, and not old before it
    (row,) = [row for row in json_of(app, "queues") if row["queue"] == "orders"]
    if age_s is None:
        assert row["oldest_s"] is None
    else:
        assert age_s <= row["oldest_s"] < age_s + 60
