"""The sample's read model: each event counts exactly once, in the order of its versions."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cqrs_celery import Event, Metadata, RecordedEvent
from sample_app import read_model
from sample_app.events import (
    ItemCreated,
    ItemDeactivated,
    ItemRenamed,
    ItemsCheckedIn,
    ItemsRemoved,
)
from sample_app.read_model import (
    Gap,
    StockRow,
    add_row,
    add_stock,
    change_name,
    mark_inactive,
    take_stock,
)


@pytest.fixture(autouse=True)
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give each test a database of its own, in a folder that is still to be made."""
    path = tmp_path / "new" / "stock.sqlite3"
    read_model.close()
    monkeypatch.setenv(read_model.VARIABLE, str(path))
    yield path
    read_model.close()


def handle(event: Event, version: int, id: str = "bolt") -> None:
    """Hand an event to the function that subscribes to it."""
    functions = {
        ItemCreated: add_row,
        ItemRenamed: change_name,
        ItemsCheckedIn: add_stock,
        ItemsRemoved: take_stock,
        ItemDeactivated: mark_inactive,
    }
    functions[type(event)](event, recorded(event, version, id))


def recorded(event: Event, version: int, id: str) -> RecordedEvent:
    return RecordedEvent(
        event=event,
        event_id=f"{id}-{version}",
        application="inventory",
        aggregate_type="InventoryItem",
        aggregate_id=id,
        version=version,
        global_position=version,
        timestamp=datetime.now(UTC),
        metadata=Metadata(),
    )


def test_each_event_changes_its_items_row() -> None:
    # when an item's events come
    handle(ItemCreated(name="Bolt"), 1)
    assert read_model.find("bolt") == StockRow("bolt", "Bolt", 0, True, 1)
    handle(ItemsCheckedIn(count=7), 2)
    handle(ItemsRemoved(count=3), 3)
    handle(ItemRenamed(name="Nut"), 4)
    assert read_model.find("bolt") == StockRow("bolt", "Nut", 4, True, 4)
    handle(ItemsRemoved(count=4), 5)
    handle(ItemDeactivated(), 6)
    # then the row says what they said
    assert read_model.find("bolt") == StockRow("bolt", "Nut", 0, False, 6)


def test_items_have_versions_of_their_own() -> None:
    handle(ItemCreated(name="Nut"), 1, "nut")
    handle(ItemCreated(name="Bolt"), 1, "bolt")
    handle(ItemsCheckedIn(count=1), 2, "nut")
    assert [(row.id, row.version) for row in read_model.rows()] == [("bolt", 1), ("nut", 2)]
    assert read_model.events_counted() == 3


def test_an_event_that_arrives_again_is_skipped() -> None:
    # given an item with two events
    handle(ItemCreated(name="Bolt"), 1)
    handle(ItemsCheckedIn(count=7), 2)
    # when both come again, the last one twice
    handle(ItemsCheckedIn(count=7), 2)
    handle(ItemCreated(name="Bolt"), 1)
    handle(ItemsCheckedIn(count=7), 2)
    # then nothing has changed
    assert read_model.rows() == [StockRow("bolt", "Bolt", 7, True, 2)]


def test_a_gap_is_an_error_that_says_what_was_expected_and_changes_nothing() -> None:
    handle(ItemCreated(name="Bolt"), 1)
    with pytest.raises(Gap, match="bolt is at version 1 here, expected 2 next; 3 came"):
        handle(ItemsCheckedIn(count=7), 3)
    assert read_model.rows() == [StockRow("bolt", "Bolt", 0, True, 1)]
    # and the missing one may still come
    handle(ItemsCheckedIn(count=5), 2)
    assert read_model.events_counted() == 2


def test_an_item_whose_beginning_is_missing_is_a_gap_too() -> None:
    with pytest.raises(Gap, match="at version 0 here, expected 1 next; 2 came"):
        handle(ItemsCheckedIn(count=7), 2)
    assert read_model.rows() == []


def test_row_and_version_change_together_or_not_at_all(database: Path) -> None:
    # given a database that refuses to move the version
    handle(ItemCreated(name="Bolt"), 1)
    read_model.connection().execute(
        "CREATE TRIGGER refuse BEFORE UPDATE OF version ON stock"
        " BEGIN SELECT RAISE(ABORT, 'refused'); END"
    )
    # when an event comes
    with pytest.raises(sqlite3.IntegrityError, match="refused"):
        handle(ItemsCheckedIn(count=7), 2)
    # then the stock has not moved either, and the database is free for others
    assert read_model.rows() == [StockRow("bolt", "Bolt", 0, True, 1)]
    other = sqlite3.connect(database, timeout=0)
    try:
        other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()


def test_an_unknown_item_has_no_row() -> None:
    assert read_model.find("bolt") is None
    assert read_model.events_counted() == 0


def test_readers_do_not_wait_for_the_writer(database: Path) -> None:
    handle(ItemCreated(name="Bolt"), 1)
    # given a writer in the middle of its transaction
    writer = sqlite3.connect(database, isolation_level=None)
    try:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE stock SET count = 99")
        # then a reader sees what was there before
        assert read_model.rows() == [StockRow("bolt", "Bolt", 0, True, 1)]
    finally:
        writer.close()


def handle_elsewhere(number: int) -> None:
    """Handle the events of one item in another process, each twice."""
    handle(ItemCreated(name="Bolt"), 1, f"bolt-{number}")
    for version in range(2, 52):
        handle(ItemsCheckedIn(count=1), version, f"bolt-{number}")
        handle(ItemsCheckedIn(count=1), version, f"bolt-{number}")


def test_several_processes_write_at_once() -> None:
    # when three processes handle events of three items
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=handle_elsewhere, args=(n,)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    # then every event counts once
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [(row.count, row.version) for row in read_model.rows()] == [(50, 51)] * 3
