"""SQL Server's statements: held against a snapshot, parsed, and kept free of other engines' words.

No engine runs here; the store's contract runs against one where CQRS_TEST_MSSQL_URL names it. To
write the snapshot anew: CQRS_WRITE_SNAPSHOTS=1 pytest tests/unit/test_sqlserver_statements.py
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import sqlglot
from sqlalchemy import create_engine

from cqrs_celery.backends.sql.batch import Batch
from cqrs_celery.backends.sql.failures import Failure
from cqrs_celery.backends.sql.schema import schema_sql
from cqrs_celery.backends.sqlserver.event_store import SqlServerEventStore
from cqrs_celery.messages.metadata import Metadata
from cqrs_celery.store.events import CommandRecord, NewEvent, Place, StreamAppend, Subscriber
from cqrs_celery.store.relay_ports import Led
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import StreamName

SNAPSHOT = Path(__file__).with_name("sqlserver_statements.sql")

#: Words that sqlglot lets pass, and SQL Server does not; and types that it would regret.
FOREIGN = re.compile(
    r"\b(LIMIT|ON CONFLICT|RETURNING|(BIG)?SERIAL|FOR UPDATE|ILIKE|JSONB?|TIMESTAMPTZ|AUTOINCREMENT"
    r"|BOOLEAN|TRUE|FALSE|IMAGE|TEXT|NTEXT|UUID|NOW\(\))\b|::"
)


class Error(Exception):
    """Stand for pyodbc's."""


DRIVER = SimpleNamespace(paramstyle="qmark", version="5.5.0", Error=Error, Cursor=object)


@pytest.fixture
def store() -> SqlServerEventStore:
    return SqlServerEventStore(create_engine("mssql+pyodbc://h/d?driver=x", module=DRIVER))


def compiled(statement: Any, dialect: Any, **options: Any) -> str:
    options["compile_kwargs"] = {"render_postcompile": True}
    return str(statement.compile(dialect=dialect, **options))


class Recorder:
    """Be a connection that writes down what it is to execute."""

    def __init__(self, store: SqlServerEventStore, answers: Iterator[Any]) -> None:
        self.dialect = store.engine.dialect
        self.answers = answers
        self.statements: list[str] = []

    def execute(self, statement: Any, rows: Any = None) -> Any:
        keys = {"column_keys": list(rows[0])} if rows else {}
        self.statements.append(compiled(statement, self.dialect, **keys))
        return next(self.answers)


def append_statements(store: SqlServerEventStore) -> list[str]:
    """Return the statements of an append to a stream that is there and a new one."""
    at = datetime(2026, 1, 2, tzinfo=UTC)
    event = NewEvent("e-1", "shop.thing", 1, at, b"{}", Metadata())
    old, new = (StreamName("shop", "Item", name) for name in ("old", "new"))
    keys = [store.rules.key(stream) for stream in (old, new)]
    one = SimpleNamespace(scalar_one=lambda: 7)
    none = SimpleNamespace(first=lambda: None)
    answers = iter(
        [none, [(keys[0], 1, 4)], None, [(keys[1], 2, 0)], None, None, None, one, none, None, None]
    )
    recorder = Recorder(store, answers)
    batch = Batch.of([StreamAppend(old, 4, [event]), StreamAppend(new, 0, [event])])
    committed = store.write_portably(recorder, batch, CommandRecord("c-1", "null", 60))  # type: ignore[arg-type]
    assert committed == (7, (5, 1))
    return recorder.statements


def snapshot_statements(store: SqlServerEventStore, read: list[str]) -> dict[str, list[str]]:
    """Return the statements about snapshots; those that read enter a list of the store's."""
    snapshots = store.snapshots()
    stream = StreamName("shop", "Item", "1")
    kept = Snapshot(stream, 7, 1, datetime(2026, 1, 2, tzinfo=UTC), b"{}")
    there, not_there = (SimpleNamespace(first=lambda found=found: found) for found in (1, None))
    stream_id, changed = SimpleNamespace(scalar=lambda: 5), SimpleNamespace(all=lambda: [(5,)])
    written = {}
    for name, write, answers in (
        ("put_snapshot", lambda: snapshots.put(kept), [stream_id, not_there, None]),
        ("replace_snapshot", lambda: snapshots.put(kept), [stream_id, there, changed]),
        ("remove_snapshot", lambda: snapshots.remove(stream), [changed]),
    ):
        recorder: Any = Recorder(store, iter(answers))
        store.run_each = lambda _, do, to=recorder: do(to)  # type: ignore[method-assign, misc]
        assert write() is True
        written[name] = recorder.statements
    first = len(read)
    snapshots.find(stream)
    snapshots.find_with_newer(stream, 1)
    list(snapshots.streams("shop", "Item"))
    found = dict(zip(("find_snapshot", "find_with_newer", "snapshots"), read[first:], strict=True))
    return {**{name: [statement] for name, statement in found.items()}, **written}


def outbox_statements(store: SqlServerEventStore) -> dict[str, list[str]]:
    """Return the statements of what the relay keeps, and of its cleaning."""
    subscriber = Subscriber("shop.till", ("shop.paid",), "till", ("", "", "", "", ""))
    none, some = (SimpleNamespace(all=lambda found=found: found) for found in ([], [("x",)]))
    known = SimpleNamespace(all=lambda: [(msgspec.json.encode(subscriber).decode(),)])
    written = {}
    for name, write, answers in (
        ("register", lambda: store.outbox.register("shop", subscriber), [none, None, None]),
        (
            "unregister",
            lambda: store.outbox.unregister("shop", "shop.till", ["shop.paid"]),
            [some, known, None],
        ),
        ("forget_expired_commands", store.forget_expired_commands, [some]),
    ):
        recorder: Any = Recorder(store, iter(answers))
        do_it: Any = lambda _, do, to=recorder: do(to)  # noqa: E731
        store.run_each = store.transact = do_it  # type: ignore[method-assign]
        write()
        written[name] = recorder.statements
    return {**written, **relay_statements(store)}


def relay_statements(store: SqlServerEventStore) -> dict[str, list[str]]:
    """Return the statements about the lease of the active relay, and what belongs to it."""
    leadership = store.leadership("shop", broker="redis")
    leadership.led = lambda: Led("host:1", "b", "redis", 0, False)  # type: ignore[method-assign]
    leadership.token, leadership.broker_id, leadership.former_broker_id = "t", "b", "a"
    changed: list[Any] = []

    def note(what: str, *changes: Any) -> None:
        changed.extend(changes)

    leadership.rows.changed = note  # type: ignore[method-assign]
    written = {}
    for name, change in (
        ("claim_relay", lambda: leadership.claim("b")),
        ("renew_relay", leadership.holds),
        ("save_checkpoint", lambda: leadership.save_checkpoint(Place(7, "e"))),
        ("note_new_broker_id", leadership.note_new_broker_id),
        ("move_relay", lambda: leadership.claim("c")),
        ("join_relay", lambda: leadership._join("b")),
        ("release_relay", leadership.release),
    ):
        changed.clear()
        change()
        written[name] = [compiled(one, store.engine.dialect) for one in changed]
    return written


def all_statements(store: SqlServerEventStore) -> dict[str, list[str]]:
    read: list[str] = []

    def note(statement: Any, what: str, *_: Any, **parameters: Any) -> list[Any]:
        read.append(compiled(statement.params(parameters), store.engine.dialect))
        return [(0, None)] if what == "count what is pending" else []

    store.rows = note  # type: ignore[method-assign]
    store.read_stream(StreamName("shop", "Item", "1"), after_version=3, limit=10)
    store.read_all(after_position=5)
    store.find_command("c-1")
    store.outbox.last_position()
    store.outbox.pending(5)
    store.read_history(StreamName("shop", "Item", "1"))
    store.leadership("shop", broker="redis").leader_of_another("b")
    return {
        "schema": [one for one in schema_sql("mssql").split("GO\n") if one.strip()],
        "append": append_statements(store),
        "read_stream": read[:1],
        "read_all": read[1:2],
        "find_command": read[2:3],
        "last_position": read[3:4],
        "pending": read[4:5],
        "read_history": read[5:6],
        "leader_of_another": read[6:7],
        **snapshot_statements(store, read),
        **outbox_statements(store),
    }


def test_the_statements_are_those_of_the_snapshot(store: SqlServerEventStore) -> None:
    found = "".join(
        f"-- {name}\n{re.sub(r' +$', '', statement.strip(), flags=re.MULTILINE)}\n\n"
        for name, statements in all_statements(store).items()
        for statement in statements
    )
    if os.environ.get("CQRS_WRITE_SNAPSHOTS"):
        SNAPSHOT.write_text(found, encoding="utf-8")
    assert found == SNAPSHOT.read_text(encoding="utf-8")


def test_every_statement_is_t_sql_without_a_word_of_another_engine(
    store: SqlServerEventStore,
) -> None:
    for statements in all_statements(store).values():
        for statement in statements:
            # sqlglot knows OUTPUT of INSERT and UPDATE, not of DELETE, nor hints there.
            known = re.sub(
                r"\b(DELETE FROM \w+)( WITH \([A-Z, ]+\))? OUTPUT deleted\.\w+", r"\1", statement
            )
            assert sqlglot.parse(known, read="tsql"), statement
            assert not FOREIGN.search(statement.upper()), statement


def test_every_text_that_identifies_is_compared_code_by_code(store: SqlServerEventStore) -> None:
    schema = "\n".join(all_statements(store)["schema"])
    names = ("application", "aggregate_type", "aggregate_id", "type", "event_id")
    for column in (*names, "stream_key", "command_id", "name", "store_id"):
        lines = re.findall(rf"^ +{column} N?V?A?R?CHAR.*$", schema, re.MULTILINE)
        assert lines, column
        assert all("COLLATE Latin1_General_100_BIN2" in line for line in lines), lines


def test_a_purge_passes_over_commands_that_another_transaction_has_locked(
    store: SqlServerEventStore,
) -> None:
    (statement,) = all_statements(store)["forget_expired_commands"]
    assert statement.count("FROM cqrs_commands WITH (UPDLOCK, READPAST, ROWLOCK)") == 2


def test_streams_are_locked_by_hint_and_by_seeks_alone(store: SqlServerEventStore) -> None:
    # A scan, which is the cheaper plan for a small table, would lock every stream in it.
    statements = all_statements(store)["append"]
    locking = [one for one in statements if one.startswith("SELECT cqrs_streams.")]
    assert len(locking) == 2
    for statement in locking:
        assert "cqrs_streams WITH (UPDLOCK, HOLDLOCK, ROWLOCK, FORCESEEK)" in statement


def test_the_oldest_open_row_version_is_looked_up_before_the_statement_that_reads(
    store: SqlServerEventStore,
) -> None:
    # Inside it, that could be later than what READ_COMMITTED_SNAPSHOT shows.
    [statement] = all_statements(store)["read_all"]
    first, second = statement.split(";")
    assert first == "DECLARE @end BINARY(8) = MIN_ACTIVE_ROWVERSION()"
    assert "row_version < @end" in second
    assert "MIN_ACTIVE" not in second


def test_every_look_at_a_position_can_seek_in_the_index_of_row_versions(
    store: SqlServerEventStore,
) -> None:
    statements = all_statements(store)
    for name in ("read_all", "last_position", "pending"):
        [statement] = statements[name]
        # What is cast is returned; it is neither compared nor sorted by, and no maximum is taken.
        _, _, conditions = statement.partition("FROM ")
        assert "CAST(" not in conditions, statement
        assert "max(" not in statement
        assert re.search(r"FROM cqrs_events", statement)


@pytest.mark.parametrize(
    ("arguments", "failure"),
    [
        (("23000", "Violation of UNIQUE KEY constraint (2627) (SQLExecDirectW)"), Failure.TAKEN),
        (("23000", "Cannot insert duplicate key row (2601)"), Failure.TAKEN),
        (("40001", "deadlocked on lock resources (1205)"), Failure.BEATEN),
        (("42S02", "Invalid object name 'cqrs_events'. (208)"), Failure.SCHEMA),
        (("08S01", "Communication link failure (0)"), Failure.AWAY),
        (("HYT00", "Login timeout expired (0)"), Failure.AWAY),
        (
            ("42000", "Lock request time out period exceeded. (1222) (SQLExecDirectW)"),
            Failure.BEATEN,
        ),
        (("42S22", "Invalid column name 'outcome'. (207)"), Failure.SCHEMA),
        (("42000", "Cannot open database requested by the login. (4060)"), Failure.AWAY),
        (("HY000", "SHUTDOWN is in progress. (6005) (SQLExecDirectW)"), Failure.AWAY),
        (("HY000", "Database 'd' is not currently available. (40613)"), Failure.AWAY),
        (("42000", "The service has encountered an error. (40197)"), Failure.AWAY),
        (("42000", "The service is currently busy. (40501)"), Failure.AWAY),
        (("42000", "Not enough resources to process request. (49918)"), Failure.AWAY),
        (("42000", "Too many create or update operations. (49919)"), Failure.AWAY),
        (("42000", "Too many operations in progress. (49920)"), Failure.AWAY),
        (("42000", "The request limit has been reached. (10928)"), Failure.AWAY),
        (("42000", "The server is too busy. (10929)"), Failure.AWAY),
        (("42000", "Failed to update: the database is read-only. (3906)"), Failure.AWAY),
        (("42000", "Incorrect syntax (102)"), Failure.OTHER),
        # All of a driver's errors are there, the first one first.
        (
            ("23000", "[23000] Duplicate key (2601) (SQLExecDirectW); [23000] Terminated. (3621)"),
            Failure.TAKEN,
        ),
        # A number in the text is none of the error's.
        (("42000", "[42000] own (2627) text (50000) (SQLExecDirectW)"), Failure.OTHER),
    ],
)
def test_what_pyodbc_says_is_understood(
    store: SqlServerEventStore, arguments: tuple[str, str], failure: Failure
) -> None:
    assert store.rules.failure(Error(*arguments)) is failure
