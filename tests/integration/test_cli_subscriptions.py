"""`celery -A app cqrs subscriptions` shows who gets which events, and removes who should not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import pools

from cqrs_celery import CQRS
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli import cqrs
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination
from cqrs_celery.store.events import Subscriber
from cqrs_celery.transport import TRANSPORT
from tests.queues import Worker


def run_cli(app: celery.Celery, *arguments: str, answer: str = "") -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(cqrs, ["subscriptions", *arguments], obj=context, input=answer)


def tasks(app: celery.Celery) -> list[str]:
    result = run_cli(app, "list", "--json")
    assert result.exit_code == 0, result.output
    return [row["task"] for row in json.loads(result.stdout)]


@contextmanager
def queue_of(app: celery.Celery) -> Iterator[ReliableQueue]:
    with app.connection_for_write() as connection:
        yield connection.channel().queue


@pytest.fixture
def app(redis_url: str) -> Iterator[celery.Celery]:
    """Give an application with a subscription of two functions, and one of another."""
    app = celery.Celery("shop", broker=redis_url, set_as_current=False)
    app.conf.update(broker_transport=TRANSPORT)
    try:
        with queue_of(app) as queue:
            pieces = "<|||>"
            queue.subscribe("stock.add", ["made", "found"], queue="stock", pieces=pieces)
            queue.subscribe("stock.take", ["sold"], queue="stock", pieces=pieces)
            queue.subscribe("mail.send", ["sold"], queue="mail", pieces=pieces)
            for n in range(3):
                queue.publish_topic(
                    "sold", str(n), message_id=str(n), root_id="r", sequence="Item-1"
                )
            Worker(queue, "anna", ["stock"])  # type: ignore[arg-type]
        yield app
    finally:
        app.close()
        pools.reset()


def test_each_function_is_listed_with_its_events_and_workers(app: celery.Celery) -> None:
    rows = json.loads(run_cli(app, "list", "--json").stdout)

    assert rows == [
        {"subscription": "mail", "task": "mail.send", "events": ["sold"], "waiting": 3,
         "dead": 0, "workers": 0, "paused": False},
        {"subscription": "stock", "task": "stock.add", "events": ["found", "made"], "waiting": 3,
         "dead": 0, "workers": 1, "paused": False},
        {"subscription": "stock", "task": "stock.take", "events": ["sold"], "waiting": 3,
         "dead": 0, "workers": 1, "paused": False},
    ]  # fmt: skip
    (mail,) = [line for line in run_cli(app, "list").output.splitlines() if "mail.send" in line]
    assert mail.split()[-1] == "NONE"


def test_a_worker_whose_lease_has_ended_takes_from_nothing(app: celery.Celery) -> None:
    # given the only worker, which was killed, and nobody who could have recovered it
    with queue_of(app) as queue:
        queue.client.zadd(queue.key("consumers"), {"anna": 1})
    # then it is not counted
    rows = json.loads(run_cli(app, "list", "--json").stdout)
    assert [row["workers"] for row in rows] == [0, 0, 0]


def test_a_removed_function_gets_no_more_and_keeps_what_it_was_sent(app: celery.Celery) -> None:
    # when a subscription is removed
    result = run_cli(app, "remove", "mail", answer="y\n")
    assert result.exit_code == 0, result.output
    # then the others go on, and what was sent is there
    assert tasks(app) == ["stock.add", "stock.take"]
    with queue_of(app) as queue:
        queue.publish_topic("sold", "more", message_id="9", root_id="r", sequence="Item-1")
        assert queue.count("mail").in_sequences == 3
        assert queue.count("stock").in_sequences == 4


def test_one_function_of_a_subscription_is_removed_alone(app: celery.Celery) -> None:
    run_cli(app, "remove", "stock.take", "--yes")

    assert tasks(app) == ["mail.send", "stock.add"]


def test_a_purge_deletes_what_waits_where_nobody_else_uses_the_queue(app: celery.Celery) -> None:
    assert "3 messages of mail deleted" in run_cli(app, "remove", "mail", "--purge", "--yes").output
    assert "deleted" not in run_cli(app, "remove", "stock.add", "--purge", "--yes").output

    with queue_of(app) as queue:
        assert not any(queue.count("mail"))
        assert queue.count("stock").in_sequences == 3


def test_a_purge_says_beforehand_how_many_messages_it_deletes(app: celery.Celery) -> None:
    # given one message that can be taken, others behind it, and one that is delayed
    with queue_of(app) as queue:
        queue.publish([Destination("mail", "later")], delay_ms=3_600_000)
    # when they are purged
    output = run_cli(app, "remove", "mail", "--purge", "--yes").output
    # then as many were announced as were deleted
    assert "mail has 4 messages that wait\n" in output
    assert "4 messages of mail deleted" in output


def test_a_single_message_is_one(app: celery.Celery) -> None:
    with queue_of(app) as queue:
        queue.purge("mail")
        queue.publish([Destination("mail", "alone", sequence="Item-9")])

    output = run_cli(app, "remove", "mail", "--purge", "--yes").output

    assert "mail has 1 message that waits\n" in output
    assert "1 message of mail deleted" in output


@pytest.mark.parametrize(
    ("arguments", "answer"), [(["mail", "--dry-run", "--purge"], ""), (["mail"], "n\n")]
)
def test_nothing_is_removed_without_a_yes(
    app: celery.Celery, arguments: list[str], answer: str
) -> None:
    before = tasks(app)

    result = run_cli(app, "remove", *arguments, answer=answer)

    assert "mail.send gets sold" in result.output
    assert tasks(app) == before


def test_an_unknown_subscription_is_refused_and_the_known_are_named(app: celery.Celery) -> None:
    result: Any = run_cli(app, "remove", "male", "--yes")

    assert result.exit_code == 2
    assert "no subscription male is registered; there are: mail, stock" in result.output


def test_a_sql_store_forgets_a_removed_subscription_too(redis_url: str, tmp_path: Path) -> None:
    # given an application with a SQL store, whose subscription is registered
    app = celery.Celery("shop", broker=redis_url, set_as_current=False)
    app.conf.update(
        broker_transport=TRANSPORT, cqrs_event_store=f"sqlite:///{tmp_path / 'events.db'}"
    )
    runtime = CQRS(app).runtime
    store: Any = runtime.store
    create_schema(store)
    registered: Any = runtime.subscriptions
    registered.register(Subscriber("mail.send", ("sold",), "mail", ("", "", "", "", "")))
    assert [one.name for one in store.outbox.subscribers("shop")] == ["mail.send"]
    # when it is removed
    result = run_cli(app, "remove", "mail", "--yes")
    # then neither the queue nor the store knows it
    assert result.exit_code == 0, result.output
    assert tasks(app) == []
    assert list(store.outbox.subscribers("shop")) == []
    app.close()
    pools.reset()


# ------------------------------------------------------------ pausing


def heed_pauses(app: celery.Celery) -> None:
    """Let the worker say what one of this release says."""
    with queue_of(app) as queue:
        queue.consume("anna", ["stock"], about={"worker": "anna@shop", "pauses": True})


def test_a_paused_subscription_keeps_everything_and_is_shown_as_paused(app: celery.Celery) -> None:
    heed_pauses(app)
    # when a subscription is paused, twice
    result = run_cli(app, "pause", "stock", "mail")
    assert (result.exit_code, result.output) == (0, "stock paused\nmail paused\n")
    assert run_cli(app, "pause", "stock").output == "stock was paused already\n"
    # then its worker takes nothing, and lists say so
    with queue_of(app) as queue:
        assert not queue.settle_and_take("anna", queues=["stock"], count=10).taken
    rows = json.loads(run_cli(app, "list", "--json").stdout)
    assert [row["paused"] for row in rows] == [True, True, True]
    assert run_cli(app, "list").output.count(" paused\n") == 3
    context = CLIContext(app=app, no_color=True, workdir=None)
    shown = CliRunner().invoke(cqrs, ["queues"], obj=context).output
    assert "\npaused: mail, stock\n" in shown
    # when it is resumed, then its worker takes what has come, in its order
    assert run_cli(app, "resume", "stock").output == "stock resumed\n"
    assert run_cli(app, "resume", "stock").output == "stock was not paused\n"
    with queue_of(app) as queue:
        taken = queue.settle_and_take("anna", queues=["stock"], count=10, run=10).taken
        assert [one.body for one in taken] == [b"0", b"1", b"2"]
        assert queue.paused() == ["mail"]


@pytest.mark.parametrize("command", ["pause", "resume"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("orders", "no subscription orders is registered; there are: mail, stock"),
        ("stock.add", "is a function of the subscription stock, which is paused with all"),
    ],
)
def test_what_is_no_subscription_is_refused_with_those_there_are(
    app: celery.Celery, command: str, name: str, text: str
) -> None:
    heed_pauses(app)
    result = run_cli(app, command, "mail", name)
    assert result.exit_code == 2
    assert text in " ".join(result.output.split())
    # and nothing was changed
    with queue_of(app) as queue:
        assert queue.paused() == []


def test_a_pause_that_a_worker_of_an_older_release_would_not_heed_is_refused(
    app: celery.Celery,
) -> None:
    # given a worker that does not say that it heeds pauses
    result = run_cli(app, "pause", "stock")
    assert result.exit_code == 1
    assert "nothing was paused: the workers anna are of a release" in result.output
    # then one without such workers is paused alone
    assert run_cli(app, "pause", "mail").exit_code == 0
    with queue_of(app) as queue:
        assert queue.paused() == ["mail"]


def test_a_subscription_that_was_removed_while_it_was_paused_can_be_resumed(
    app: celery.Celery,
) -> None:
    run_cli(app, "pause", "mail")
    run_cli(app, "remove", "mail", "--yes")
    assert run_cli(app, "resume", "mail").output == "mail resumed\n"


def test_a_purge_of_a_removed_subscription_ends_its_pause(app: celery.Celery) -> None:
    run_cli(app, "pause", "mail")
    run_cli(app, "remove", "mail", "--purge", "--yes")
    with queue_of(app) as queue:
        assert queue.paused() == []


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_another_broker_can_pause_nothing(command: str) -> None:
    app = celery.Celery("shop", broker="memory://", set_as_current=False)
    try:
        result = run_cli(app, command, "stock")
        assert result.exit_code == 2
        assert "is not the reliable queue, and no other can pause" in " ".join(
            result.output.split()
        )
    finally:
        app.close()
