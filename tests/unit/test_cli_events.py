"""`celery -A app cqrs events check` on a store in memory."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from celery import Celery
from click.testing import CliRunner, Result

from cqrs_celery import CQRS, Event, EventData, upcaster
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.cli import cqrs as command
from cqrs_celery.cli.events import BATCH
from cqrs_celery.messages.metadata import new_id, utc_now
from cqrs_celery.store.events import NewEvent, StreamAppend
from cqrs_celery.store.stream import ANY_VERSION, StreamName


class CheckedNow(Event, name="checked.now", version=2):
    count: int


@upcaster("checked.now", 1)
def before(data: dict[str, Any]) -> dict[str, Any]:
    return {"count": data["number"]}


@upcaster("checked.gone", 1)
def gone(data: dict[str, Any]) -> list[EventData]:
    return []


def app_with(*events: tuple[str, int, str], application: str = "checked") -> Celery:
    """Return an application whose store has events, recorded by it or by another one."""
    app, store = Celery("checked"), MemoryEventStore()
    app.cqrs_kept = CQRS(app, store=store)
    for name, version, data in events:
        new = NewEvent(new_id(), name, version, utc_now(), data.encode())
        stream = StreamName(application, "Item", "7")
        store.append([StreamAppend(stream, ANY_VERSION, [new])])
    return app


def check(app: Celery, *options: str) -> Result:
    return CliRunner().invoke(command, ["events", "check", *options], obj=SimpleNamespace(app=app))


GOOD = [("checked.now", 1, '{"number":1}'), ("checked.now", 2, '{"count":1}')]
BAD = [
    ("checked.now", 2, '{"count":"x"}'),
    ("checked.nobody", 1, "{}"),
    ("checked.nobody", 1, "{}"),
    ("checked.now", 1, "{}"),
]


def test_a_store_that_can_be_read_is_reported_with_its_counts():
    result = check(app_with(*GOOD, ("checked.gone", 1, "{}")))
    assert result.exit_code == 0, result.output
    assert "3 events to position 3: all can be read" in result.output
    assert result.output.splitlines()[2].split()[:4] == ["checked.gone", "1", "1", "dropped"]


def test_an_empty_store_is_fine():
    assert check(app_with()).exit_code == 0


def test_what_fails_is_counted_by_type_and_version_with_its_first_position():
    result = check(app_with(*GOOD, *BAD), "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert (report["is_ok"], report["events"], report["last_position"]) == (False, 6, 6)
    rows = [
        (f["type"], f["version"], f["outcome"], f["events"], f["first_position"])
        for f in report["findings"]
    ]
    assert rows == [
        ("checked.nobody", 1, "UnknownMessageType", 2, 4),
        ("checked.now", 1, "UpcastFailed", 1, 6),
        ("checked.now", 2, "MalformedMessage", 1, 3),
        ("checked.now", 1, "upcast", 1, 1),
        ("checked.now", 2, "read", 1, 2),
    ]
    assert report["findings"][0]["first_in"] == "Item-7 version 4"
    assert "$.count" in report["findings"][2]["error"]


def test_failures_are_told_in_words_too():
    result = check(app_with(*BAD))
    assert result.exit_code == 1
    assert "raised KeyError: 'number'" in result.output
    assert "4 events to position 4: 4 can't be read" in result.output


def test_what_other_applications_keep_for_themselves_is_no_failure():
    result = check(app_with(*GOOD, ("shop.sold", 1, "{}"), application="shop"))
    assert result.exit_code == 0, result.output
    assert "3 events to position 3: all can be read, but for 1 of other app" in result.output
    # but what is taken from them must be read
    result = check(app_with(("checked.now", 3, "{}"), application="shop"))
    assert result.exit_code == 1
    # and what we have recorded ourselves, whatever its name
    assert check(app_with(("shop.sold", 1, "{}"))).exit_code == 1


def test_it_begins_behind_a_position():
    assert check(app_with(*BAD[:1], *GOOD), "--after", "1").exit_code == 0


def test_a_store_of_many_batches_is_read_to_its_end():
    result = check(app_with(*GOOD * (BATCH + 1)), "--json")
    assert json.loads(result.stdout)["events"] == 2 * (BATCH + 1)


def test_an_application_without_cqrs_is_told_so():
    result = check(Celery("bare"))
    assert result.exit_code == 2
    assert "has no CQRS" in result.output
