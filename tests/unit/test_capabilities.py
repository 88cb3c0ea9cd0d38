"""What a store declares that it can do, and what of it is left when a store is wrapped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner
from sqlalchemy import text

from cqrs_celery import CQRS, Aggregate, Event, EventStore, applies, open_event_store
from cqrs_celery.app.relaying import RelayParts
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.locks import MemoryLocks
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.backends.redis.event_store import RedisEventStore
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli import cqrs as command
from cqrs_celery.errors import InvalidSetting, SessionError
from cqrs_celery.store.capabilities import (
    Capabilities,
    SnapshotCapabilities,
    capabilities_of,
    capabilities_of_snapshots,
    check_capabilities,
    place_of,
)
from cqrs_celery.store.events import History
from cqrs_celery.store.stream import StreamName

from .test_undelivered import Forwarding, Narrow


class Stamped(Event, name="capabilities.stamped"):
    pass


class Letter(Aggregate, name="CapabilitiesLetter", snapshot_every=2):
    stamps: int = 0

    @applies(Stamped)
    def _stamped(self, event: Stamped) -> None:
        self.stamps += 1


class Wrapper(Narrow):
    """A wrapper that has the port's methods, and forwards what the store in it can do."""

    @property
    def capabilities(self) -> Capabilities:
        return capabilities_of(self.store)


class Undeclared(Narrow):
    """A store of a user's, written before there was anything to declare."""

    delivers = True
    where = "the archive"

    def snapshots(self) -> Any:
        return self.store.snapshots()

    def read_history(self, stream: StreamName, *, known: Any = ()) -> Any:
        return self.store.read_history(stream, known=known)


class Boasting(Narrow):
    """A store that declares what it has no method for."""

    @property
    def capabilities(self) -> Any:
        return Capabilities(histories=self, delivers=True)  # type: ignore[arg-type]


@pytest.fixture
def sql(tmp_path: Path) -> Iterator[SqlEventStore]:
    store = open_event_store(f"sqlite:///{tmp_path}/events.db")
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    yield store
    store.close()


def application(store: Any, broker: str = "memory://", **settings: Any) -> CQRS:
    app = Celery("post", broker=broker, set_as_current=False)
    app.conf.update(settings)
    return CQRS(app, store=store)


def stamp(cqrs: CQRS, times: int) -> None:
    for _ in range(times):
        with cqrs.session() as session:
            letter = session.find(Letter, "1") or Letter("1")
            session.add(letter)
            letter.record(Stamped())


# ------------------------------------------------------------ what is declared


def test_each_store_declares_what_it_can_do(sql: SqlEventStore) -> None:
    assert capabilities_of(sql) == Capabilities(
        relayed=sql,
        transactions=sql,
        snapshots=sql,
        histories=sql,
        replica=sql,
        tables=sql,
        checks_versions=True,
        where=sql.where,
    )
    memory, delivering = MemoryEventStore(), MemoryEventStore(on_commit=lambda events: None)
    assert capabilities_of(memory) == Capabilities(
        snapshots=memory, checks_versions=True, is_in_process=True
    )
    assert capabilities_of(delivering).delivers
    redis = RedisEventStore(lambda: pytest.fail("it was connected"))
    assert capabilities_of(redis) == Capabilities(
        subscriptions=redis, snapshots=redis, checks_versions=True
    )
    for store in (sql, memory, delivering, redis):
        check_capabilities(store)


def test_each_snapshot_store_declares_what_it_can_do(sql: SqlEventStore) -> None:
    assert capabilities_of_snapshots(MemorySnapshotStore()) == SnapshotCapabilities()
    for kept in (sql.snapshots(), RedisEventStore(lambda: pytest.fail("connected")).snapshots()):
        assert capabilities_of_snapshots(kept) == SnapshotCapabilities(with_newer=kept)


def test_a_store_that_declares_nothing_can_do_what_it_has_methods_for(sql: SqlEventStore) -> None:
    bare: EventStore = Narrow(sql)
    assert capabilities_of(bare) == Capabilities()
    old = Undeclared(sql)
    assert capabilities_of(old) == Capabilities(
        delivers=True, snapshots=old, histories=old, where="the archive"
    )
    # and a wrapper of it that has whatever it has
    around = Forwarding(old)
    assert capabilities_of(around) == replace(
        capabilities_of(old), snapshots=around, histories=around
    )
    assert [place_of(store) for store in (bare, old)] == ["Narrow", "the archive"]


def test_a_snapshot_store_that_declares_nothing_can_do_what_it_has_methods_for() -> None:
    class Together:
        def find_with_newer(self, stream: Any, schema_version: int) -> Any: ...

    store: Any = Together()
    assert capabilities_of_snapshots(store).with_newer is store
    alone: Any = object()
    assert capabilities_of_snapshots(alone).with_newer is None


def test_an_outbox_that_is_none_is_no_outbox() -> None:
    store: Any = Narrow(MemoryEventStore())
    store.outbox, store.leadership = None, None
    assert not capabilities_of(store).reaches_subscribers


def test_what_is_no_declaration_is_refused() -> None:
    store: Any = Narrow(MemoryEventStore())
    store.capabilities = {"snapshots"}
    expected = re.escape(
        "CQRS(app, store=…) was given a Narrow whose capabilities are {'snapshots'}; expected a"
        " Capabilities of cqrs_celery.store.capabilities"
    )
    with pytest.raises(InvalidSetting, match=f"^{expected}$") as refused:
        _ = application(store).runtime
    assert refused.value.setting == "store"


def test_a_declaration_that_fails_is_not_taken_for_none() -> None:
    class Broken(Narrow):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(transactions=self.connection)  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="connection"):
        capabilities_of(Broken(MemoryEventStore()))


def test_a_worker_is_refused_whose_store_declares_what_it_does_not_have() -> None:
    with pytest.raises(InvalidSetting) as refused:
        application(Boasting(MemoryEventStore())).check_handlers()
    assert str(refused.value) == (
        "the event store Boasting declares histories = Boasting, which has no read_history;"
        " expected an object that has read_history"
    )


@pytest.mark.parametrize(
    "part",
    [
        "subscriptions", "relayed", "transactions", "enclosing", "snapshots", "histories",
        "replica", "tables",
    ],
)  # fmt: skip
@pytest.mark.parametrize("use", [CQRS.check_handlers, lambda cqrs: stamp(cqrs, 1)])
def test_a_part_without_its_methods_is_refused_wherever_the_store_is_first_used(
    part: str, use: Any
) -> None:
    class Empty:
        pass

    store: Any = Narrow(MemoryEventStore())
    store.capabilities = Capabilities(**{part: Empty()})  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match=f"declares {part} = .*Empty, which has no "):
        use(application(store))


@pytest.mark.parametrize("use", [CQRS.check_handlers, lambda cqrs: stamp(cqrs, 1)])
def test_what_is_no_store_is_refused_wherever_it_is_first_used(use: Any) -> None:
    with pytest.raises(InvalidSetting) as refused:
        use(application("memory://"))
    assert str(refused.value) == (
        "CQRS(app, store=…) was given 'memory://', which has no append, read_stream, read_all,"
        " find_command; expected an event store: an object that has append, read_stream, read_all,"
        " find_command"
    )
    app = Celery("post", broker="memory://", set_as_current=False)
    cqrs = CQRS(app, store=MemoryEventStore(), snapshots=Narrow(MemoryEventStore()))  # type: ignore[arg-type]
    with pytest.raises(InvalidSetting, match=r"snapshots=…\) was given .*, which has no"):
        use(cqrs)


def test_a_snapshot_store_that_declares_what_it_does_not_have_is_refused() -> None:
    snapshots: Any = MemorySnapshotStore()

    class Boastful:
        find, put = snapshots.find, snapshots.put
        remove, streams = snapshots.remove, snapshots.streams

        @property
        def capabilities(self) -> Any:
            return SnapshotCapabilities(with_newer=self)  # type: ignore[arg-type]

    app = Celery("post", broker="memory://", set_as_current=False)
    cqrs = CQRS(app, store=MemoryEventStore(), snapshots=Boastful())
    with pytest.raises(InvalidSetting, match=r"with_newer = .*Boastful, which has no find_w"):
        _ = cqrs.runtime


def test_a_store_that_counts_as_empty_is_the_store() -> None:
    class Sized(Narrow):
        def __len__(self) -> int:
            return 0

    store = Sized(MemoryEventStore())
    cqrs = application(store, cqrs_event_store="memory://")
    stamp(cqrs, 1)
    assert len(store.store.read_all()) == 1


# ------------------------------------------------------------ a wrapper that forwards it


@pytest.mark.parametrize("wrapper", [Wrapper, Forwarding])
def test_a_wrapper_that_forwards_it_keeps_the_relay(sql: SqlEventStore, wrapper: Any) -> None:
    """Before it was declared, a commit through a wrapper neither woke the relay nor was fenced."""
    cqrs = application(wrapper(sql), "reliable-redis://127.0.0.1:1/0")
    _ = cqrs.runtime
    # then the relay reads the store in it, whose commits wake the relay and ask for leases
    assert isinstance(cqrs.relay, RelayParts)
    assert cqrs.relay.store is sql
    assert cqrs.relay.outbox is sql.outbox
    assert cqrs.relay.replica is sql
    assert sql.on_commit == cqrs.relay.destination.wake
    assert sql.lease_check == cqrs.relay.destination.is_held
    assert cqrs.runtime.subscriptions is cqrs.relay


def test_a_wrapper_that_forwards_it_keeps_the_subscriptions() -> None:
    redis = RedisEventStore(lambda: pytest.fail("it was connected"))
    assert application(Wrapper(redis)).runtime.subscriptions is redis


def test_a_wrapper_that_forwards_it_keeps_snapshots_histories_and_transactions(
    sql: SqlEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    cqrs = application(Wrapper(sql))
    stamp(cqrs, 3)
    kept = sql.snapshots().find(StreamName("post", "CapabilitiesLetter", "1"))
    assert kept is not None
    assert kept.version == 2
    monkeypatch.setattr(sql, "read_stream", lambda *_, **__: pytest.fail("it read whole events"))
    with cqrs.session() as session:
        assert session.get(Letter, "1").stamps == 3
        session.connection.execute(text("CREATE TABLE notes (note TEXT)"))
    # while one that forwards nothing has none of them
    narrow = application(Narrow(sql))
    assert narrow.runtime.bus.repository.snapshots is None
    with pytest.raises(SessionError, match=r"the event store is not in a SQL database: .*Narrow"):
        _ = narrow.session().connection


def test_a_wrapper_that_forwards_it_keeps_locks_in_this_process() -> None:
    assert isinstance(application(Wrapper(MemoryEventStore())).runtime.bus.locks, MemoryLocks)


def test_the_cli_looks_after_the_tables_of_the_store_in_a_wrapper(sql: SqlEventStore) -> None:
    def run(store: Any, *arguments: str) -> Any:
        context = CLIContext(app=application(store).app, no_color=True, workdir=None)
        return CliRunner().invoke(command, list(arguments), obj=context)

    for arguments in (("schema", "check"), ("commands", "purge"), ("outbox", "status", "--json")):
        done = run(Wrapper(sql), *arguments)
        assert done.exit_code == 0, done.output
    refused = run(Narrow(sql), "schema", "check")
    assert refused.exit_code == 2
    assert "is not in a SQL database, and has no tables: Narrow" in refused.output


def test_a_wrapper_replaces_what_it_does_itself(sql: SqlEventStore) -> None:
    class Counting(Wrapper):
        read = 0

        @property
        def capabilities(self) -> Capabilities:
            return replace(super().capabilities, histories=self)

        def read_history(self, stream: StreamName, *, known: Any = ()) -> History | None:
            self.read += 1
            return capabilities_of(self.store).histories.read_history(  # type: ignore[union-attr]
                stream, known=known
            )

    store = Counting(sql)
    stamp(application(store, cqrs_snapshots="off"), 2)
    assert store.read == 2


# ------------------------------------------------------------ what is needed and missing


def test_snapshots_that_a_setting_asks_for_and_the_store_does_not_keep_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given no handlers, which would need more of a store
    monkeypatch.setattr("cqrs_celery.app.delivery.definitions.all", list)
    store = Narrow(MemoryEventStore())
    with pytest.raises(InvalidSetting, match=r"cqrs_snapshots is 'task', and the event store Narr"):
        application(store, cqrs_snapshots="task").check_handlers()
    # while nothing is needed of a store by who asks for nothing, or gives a place for them
    application(store).check_handlers()
    application(store, cqrs_snapshots="off").check_handlers()
    application(Wrapper(MemoryEventStore()), cqrs_snapshots="task").check_handlers()
    app = Celery("post", broker="memory://", set_as_current=False)
    app.conf.cqrs_snapshots = "task"
    CQRS(app, store=store, snapshots=MemorySnapshotStore()).check_handlers()
