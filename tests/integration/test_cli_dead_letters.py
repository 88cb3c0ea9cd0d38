"""`celery -A app cqrs dead-letters` shows what failed and why, tries it again, lets it go."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import pools

from cqrs_celery.cli import cqrs
from cqrs_celery.cli.dead_letters import LEFT
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import LetterPolicy, bury
from cqrs_celery.transport import TRANSPORT
from tests.queues import Worker, texts

FAILED_AT = 1_700_000_000.0


def run_cli(app: celery.Celery, *arguments: str, answer: str = "") -> Result:
    """Run `celery -A app cqrs dead-letters …` in this process."""
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(cqrs, ["dead-letters", *arguments], obj=context, input=answer)


def json_of(app: celery.Celery, *arguments: str) -> Any:
    result = run_cli(app, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@contextmanager
def queue_of(app: celery.Celery) -> Iterator[ReliableQueue]:
    with app.connection_for_write() as connection:
        yield connection.channel().queue


def why(exception: str, **more: Any) -> str:
    return json.dumps(
        {
            "reason": "its function failed", "exception": exception, "error": "no", "attempts": 4,
            "first_failed_at": FAILED_AT, "traceback": "Traceback: here", "worker": "anna@shop",
            "task": "shop.pack", **more,
        }
    )  # fmt: skip


@pytest.fixture
def app(redis_url: str) -> Iterator[celery.Celery]:
    """Give an application with two letters that hold up others, and one that holds up nothing."""
    app = celery.Celery("shop", broker=redis_url, set_as_current=False)
    app.conf.update(broker_transport=TRANSPORT, task_default_queue="orders")
    try:
        for name in ("Item:1", "Item:2"):
            for n in range(3):
                app.send_task("shop.pack", (n,), headers={"cqrs_sequence": f"shop:{name}"})
        app.send_task("mail.send", ({"to": "ada"},), queue="mail", task_id="mail-1")
        with queue_of(app) as queue:
            queue.letters.set_policy("orders", LetterPolicy(crowd=1))
            worker = Worker(queue, "anna", ["orders", "mail"])  # type: ignore[arg-type]
            for taken in worker.take():
                exception = "builtins.KeyError" if taken.sequence else "shop.errors.NoStamp"
                worker.end(bury, [taken], why(exception))
        yield app
    finally:
        app.close()
        pools.reset()


def ids(rows: Any) -> list[int]:
    return [row["id"] for row in rows]


def discard_mail(app: celery.Celery) -> None:
    """Discard the letter of the task that holds up nothing."""
    assert run_cli(app, "discard", "--subscription", "mail", "--yes").exit_code == 0


def left(app: celery.Celery) -> list[int]:
    return ids(json_of(app, "list"))


def test_each_letter_is_listed_with_what_it_holds_up(app: celery.Celery) -> None:
    rows = json_of(app, "list")

    mail, one, two = rows
    assert (one["subscription"], one["aggregate"], one["waiting"]) == ("orders", "shop:Item:1", 2)
    assert (two["aggregate"], two["waiting"]) == ("shop:Item:2", 2)
    assert (mail["subscription"], mail["aggregate"], mail["waiting"]) == ("mail", "", 0)
    assert (one["exception"], one["attempts"], one["state"]) == ("builtins.KeyError", 4, "dead")
    assert one["first_failed_at"] == "2023-11-14T22:13:20+00:00"
    assert (one["worker"], one["task"]) == ("anna@shop", "shop.pack")
    assert one["next_try_at"] > one["failed_at"]
    # what has no policy is not tried by itself
    assert mail["next_try_at"] is None
    table = run_cli(app, "list").output
    assert "shop:Item:2" in table
    assert "shop.errors.NoStamp" in table


@pytest.mark.parametrize(
    "foreign", ["ünïcode 🔩", "-1e400", "1e999", "-5", '"12"', "true", "[1]", '{"a":1}', "1e300"]
)
def test_a_letter_whose_reason_holds_whatever_a_header_held_is_listed(
    app: celery.Celery, foreign: str
) -> None:
    # given a letter whose number of attempts, and whose first failure, came from foreign headers
    value = foreign if foreign[0] in '-1"t[{' else json.dumps(foreign)
    text = f'{{"reason":"its function failed","attempts":{value},"first_failed_at":{value}}}'
    app.send_task("mail.send", ({"to": "eve"},), queue="mail", task_id="mail-2")
    with queue_of(app) as queue:
        worker = Worker(queue, "bob", ["mail"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(), text)
    # when the letters are listed
    rows = json_of(app, "list", "--subscription", "mail")
    # then it is among them, with the time at which it became a letter
    assert [row["task_id"] for row in rows] == ["mail-1", "mail-2"]
    assert rows[1]["first_failed_at"] == rows[1]["failed_at"]


@pytest.mark.parametrize(
    ("filters", "subscriptions"),
    [
        (["--subscription", "mail"], ["mail"]),
        (["--aggregate", "2"], ["orders"]),
        (["--aggregate", "shop:Item:2"], ["orders"]),
        (["--exception", "NoStamp"], ["mail"]),
        (["--exception", "builtins.KeyError"], ["orders", "orders"]),
        (["--exception", "its function failed"], ["mail", "orders", "orders"]),
        (["--newer-than", "60"], []),
        (["--older-than", "60", "--subscription", "mail"], ["mail"]),
        (["--archived"], []),
    ],
)
def test_letters_are_listed_by_what_they_have_in_common(
    app: celery.Celery, filters: list[str], subscriptions: list[str]
) -> None:
    assert [row["subscription"] for row in json_of(app, "list", *filters)] == subscriptions


def test_a_letter_without_an_exception_is_found_by_the_reason_that_stands_in_its_place(
    app: celery.Celery,
) -> None:
    # given a letter of a message that became no task
    app.send_task("mail.lost", queue="mail")
    with queue_of(app) as queue:
        worker = Worker(queue, "berta", ["mail"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(), '{"reason": "unknown task"}')
    # when it is looked for by what the table shows
    head, _, *rows = run_cli(app, "list", "--exception", "unknown task").output.splitlines()
    # then it is found, alone
    assert "exception or reason" in head
    assert ["unknown task" in row for row in rows] == [True]


def test_a_letter_is_shown_with_its_message_and_traceback(app: celery.Celery) -> None:
    (mail,) = json_of(app, "list", "--subscription", "mail")

    shown = json_of(app, "show", str(mail["id"]))

    assert shown["message"] == {"to": "ada"}
    assert shown["traceback"] == "Traceback: here"
    assert shown["task_id"] == "mail-1"
    text = run_cli(app, "show", str(mail["id"])).output
    assert "Traceback: here" in text
    assert "shop.errors.NoStamp" in text


def test_a_letter_that_can_t_be_read_is_shown_as_it_is(app: celery.Celery) -> None:
    with queue_of(app) as queue:
        queue.client.lpush("mail", "no envelope")
        worker = Worker(queue, "berta", ["mail"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(), "no JSON")
    rows = json_of(app, "list", "--subscription", "mail")

    shown = json_of(app, "show", str(rows[-1]["id"]))

    assert "no envelope" in shown["raw"]


def test_a_retried_letter_comes_first_and_the_rest_follows(app: celery.Celery) -> None:
    (one,) = json_of(app, "list", "--aggregate", "1")

    (done,) = json_of(app, "retry", str(one["id"]), "--yes")

    assert (done["outcome"], done["waiting"]) == ("done", 2)
    with queue_of(app) as queue:
        taken = Worker(queue, "berta", ["orders"]).take(run=3)  # type: ignore[arg-type]
    assert [json.loads(text.partition("\n")[2])[0] for text in texts(taken)] == [[0], [1], [2]]


def test_a_retry_says_that_a_letter_waits_and_not_that_its_function_succeeded(
    app: celery.Celery,
) -> None:
    result = run_cli(app, "retry", "--aggregate", "1", "--yes")

    assert "queued again" in result.output
    assert "done" not in result.output


def test_a_discarded_letter_is_gone(app: celery.Celery) -> None:
    result = run_cli(app, "discard", "--exception", "KeyError", answer="y\n")

    assert result.exit_code == 0, result.output
    assert "discard 2 dead letters?" in result.output
    assert [row["subscription"] for row in json_of(app, "list")] == ["mail"]


def test_nothing_is_done_without_a_yes(app: celery.Celery) -> None:
    before = left(app)

    result = run_cli(app, "discard", "--all", answer="n\n")

    assert result.exit_code == 1
    assert left(app) == before


@pytest.mark.parametrize("deed", ["retry", "discard"])
def test_a_dry_run_changes_nothing(app: celery.Celery, deed: str) -> None:
    before = json_of(app, "list")

    rows = json_of(app, deed, "--all", "--dry-run")

    assert {row["outcome"] for row in rows} == {f"would {deed}"}
    strip = {"age_s": 0}
    assert [{**row, **strip} for row in json_of(app, "list")] == [
        {**row, **strip} for row in before
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["retry"], "choose what to retry"),
        (["discard", "--yes"], "choose what to discard"),
        (["retry", "99", "--yes"], "no dead letter 99 is chosen; nothing was done"),
        (["discard", "--all", "--json"], "--json can't ask for confirmation"),
        (["show", "99"], "there is no dead letter 99"),
    ],
)
def test_what_is_not_clear_is_refused(app: celery.Celery, arguments: list[str], text: str) -> None:
    before = left(app)

    result = run_cli(app, *arguments)

    assert result.exit_code == 2
    assert text in result.output
    assert left(app) == before


def test_a_letter_that_is_being_tried_is_left_alone(app: celery.Celery) -> None:
    (one,) = json_of(app, "list", "--aggregate", "1")
    run_cli(app, "retry", str(one["id"]), "--yes")

    result = run_cli(app, "discard", str(one["id"]), "--yes")

    assert result.exit_code == 1
    assert "is being tried already" in result.output
    assert one["id"] in left(app)


def test_an_archived_letter_is_retried_only_where_that_is_said(app: celery.Celery) -> None:
    # given a letter whose time is over
    with queue_of(app) as queue:
        client: Any = queue.client
        (letter, _) = sorted(queue.letters.all("orders"))
        queue.letters.set_policy("orders", LetterPolicy(life_ms=1, crowd=1))
        client.zadd("cq:redrive", {f"orders\x1f{letter.id}": 1})
        deadline = time.monotonic() + 5
        while [one.deed for one in queue.letters.redrive_due()] != ["archived"]:
            assert time.monotonic() < deadline
            client.zadd("cq:redrive", {f"orders\x1f{letter.id}": 1})
    (archived,) = json_of(app, "list", "--archived")
    assert (archived["id"], archived["next_try_at"]) == (letter.id, None)
    # when it is retried, then that must be said
    assert "use --archived" in run_cli(app, "retry", str(letter.id), "--yes").output
    (done,) = json_of(app, "retry", "--archived", str(letter.id), "--yes")
    assert done["outcome"] == "done"


def test_the_check_fails_while_anything_needs_somebody(app: celery.Celery) -> None:
    # given two letters with more behind them than is allowed, and one that nobody tries again
    result = run_cli(app, "check")
    assert result.exit_code == 1
    assert result.output.count("more than 1 wait behind it") == 2
    assert result.output.count(LEFT) == 1
    as_json = run_cli(app, "check", "--json")
    assert as_json.exit_code == 1
    assert [
        (row["aggregate"], row["waiting"], row["alarm"]) for row in json.loads(as_json.stdout)
    ] == [("", 0, LEFT), *((f"shop:Item:{n}", 2, "more than 1 wait behind it") for n in (1, 2))]
    # when the two are gone, then the third one needs somebody still, whatever the bounds are
    run_cli(app, "discard", "--exception", "KeyError", "--yes")
    result = run_cli(app, "check", "--json", "--waiting", "3", "--older-than", "1e12")
    assert (result.exit_code, [row["alarm"] for row in json.loads(result.stdout)]) == (1, [LEFT])
    # and when that is gone, too
    discard_mail(app)
    # then all is well
    result = run_cli(app, "check")
    assert (result.exit_code, result.output) == (0, "nothing\n")
    assert json_of(app, "check") == []


def test_the_check_fails_for_every_letter_that_blocks_its_sequence(app: celery.Celery) -> None:
    # given two letters with others behind them, of which many are allowed
    with queue_of(app) as queue:
        queue.letters.set_policy("orders", LetterPolicy(crowd=1000))
    # when that is checked, then both need somebody
    discard_mail(app)
    result = run_cli(app, "check", "--json")
    assert result.exit_code == 1
    assert [(row["aggregate"], row["alarm"]) for row in json.loads(result.stdout)] == [
        (f"shop:Item:{n}", "blocks its sequence: retry it, or discard it") for n in (1, 2)
    ]


def test_bounds_say_what_the_check_passes_over(app: celery.Celery) -> None:
    # given a letter with two behind it, and one with none
    discard_mail(app)
    with queue_of(app) as queue:
        queue.letters.set_policy("orders", LetterPolicy(crowd=1000))
        app.send_task("shop.pack", (1,), headers={"cqrs_sequence": "shop:Item:3"})
        worker = Worker(queue, "bert", ["orders"])  # type: ignore[arg-type]
        worker.end(bury, worker.take(), json.dumps({"reason": "too new"}))
    # then the second is passed over if somebody asks for more behind it, or for older ones
    for bounds in (["--waiting", "1"], ["--older-than", "3600"]):
        result = run_cli(app, "check", "--json", *bounds)
        assert result.exit_code == 1
        found = [row["aggregate"] for row in json.loads(result.stdout)]
        assert found == ["shop:Item:1", "shop:Item:2"], bounds
    # and with bounds that none passes, all is well
    assert json_of(app, "check", "--waiting", "3") == []
    # but a crowd is one, whatever the bounds are
    with queue_of(app) as queue:
        queue.letters.set_policy("orders", LetterPolicy(crowd=1))
    assert run_cli(app, "check", "--waiting", "3").exit_code == 1


def test_a_letter_of_a_queue_that_goes_on_without_it_is_no_alarm(app: celery.Celery) -> None:
    with queue_of(app) as queue:
        queue.letters.set_policy("orders", LetterPolicy("continue", crowd=1000))
    discard_mail(app)
    assert json_of(app, "check") == []
