"""Snapshots are taken after commits, by the class's policy, and loads begin from them."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS
from cqrs_celery.app import snapshots as app_snapshots
from cqrs_celery.app.snapshots import TASK, check_snapshots
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.domain.snapshot_policy import OlderThan, SlowToLoad, SnapshotFacts
from cqrs_celery.errors import ConcurrencyError, RegistrationError, StoreUnavailable
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.sameness import difference
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.repository import Repository
from cqrs_celery.session.session import Session
from cqrs_celery.session.snapshots import Snapshots
from cqrs_celery.store.snapshot import Snapshot
from cqrs_celery.store.stream import StreamName


class SnapshotCounted(Event):
    count: int = 1


class Plain(Aggregate, name="SnapshotCounter"):
    count: int = 0
    last: list[int] = []  # noqa: RUF012

    def add(self, count: int = 1) -> None:
        self.record(SnapshotCounted(count=count))

    @applies(SnapshotCounted)
    def _counted(self, event: SnapshotCounted) -> None:
        self.count += event.count
        self.last = [*self.last, event.count][-3:]


class Counter(Plain, alias_of=Plain, snapshot_every=100):
    pass


class NextCounter(Plain, alias_of=Plain, snapshot_every=100, snapshot_version=2):
    pass


STREAM = StreamName("shop", "SnapshotCounter", "42")


class Watched(MemoryEventStore):
    """Say behind which versions streams are read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[int] = []

    def read_stream(self, stream, *, after_version=0, limit=None):
        self.reads.append(after_version)
        return super().read_stream(stream, after_version=after_version, limit=limit)


class WatchedSnapshots(MemorySnapshotStore):
    """Say what is asked of the store, and refuse it where told to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.is_away = False

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if self.is_away:
            raise StoreUnavailable("the snapshot store does not answer")

    def find(self, stream):
        self._ask("find")
        return super().find(stream)

    def put(self, snapshot):
        self._ask(f"put {snapshot.version}")
        return super().put(snapshot)

    def remove(self, stream):
        self._ask("remove")
        return super().remove(stream)


@pytest.fixture
def store() -> Watched:
    return Watched()


@pytest.fixture
def kept() -> WatchedSnapshots:
    return WatchedSnapshots()


@pytest.fixture
def repository(store: Watched, kept: WatchedSnapshots) -> Repository:
    return Repository(store, Serializer("shop"), snapshots=Snapshots(kept))


def commit(repository: Repository, *counts: int, cls: type[Plain] = Counter) -> None:
    """Load, change and save the aggregate, as one command."""
    with Session(repository) as session:
        counter = session.find(cls, "42") or cls("42")
        session.add(counter)
        for count in counts:
            counter.add(count)


def version_of(kept: MemorySnapshotStore) -> int:
    snapshot = kept._snapshots.get(STREAM)
    return snapshot.version if snapshot else 0


# The predecessor's


def test_a_load_begins_with_the_newest_snapshot_and_replays_later_events(repository, store, kept):
    """54: the newest fitting snapshot is restored, later events replayed."""
    # given snapshots at 100 and 200, and 30 events more
    commit(repository, *range(100))
    commit(repository, *range(100))
    commit(repository, *range(30))
    store.reads.clear()
    # when
    counter = repository.get(Counter, "42")
    # then
    # the snapshot's last event is read too, to compare its id
    assert store.reads == [199]
    assert (counter.version, counter.count) == (230, 2 * 4950 + 435)
    assert version_of(kept) == 200


def test_without_a_snapshot_all_events_are_replayed(repository, store, kept):
    """55: none: events replayed."""
    commit(repository, *range(50))
    store.reads.clear()
    assert repository.get(Counter, "42").count == sum(range(50))
    assert store.reads == [0]
    assert version_of(kept) == 0


def test_an_aggregate_without_snapshots_asks_no_snapshot_store_when_it_is_loaded(repository, kept):
    """56: aggregates without snapshots touch no snapshot store: on load."""
    commit(repository, *range(300), cls=Plain)
    repository.get(Plain, "42")
    repository.find(Plain, "nobody")
    assert kept.asked == []


def test_an_aggregate_without_snapshots_asks_no_snapshot_store_when_it_is_saved(repository, kept):
    """57: aggregates without snapshots touch no snapshot store: on save, on a conflict."""
    commit(repository, *range(300), cls=Plain)
    stale = Plain("42")
    stale.add()
    with pytest.raises(ConcurrencyError):
        repository.save(stale)
    assert kept.asked == []


def test_200_changes_in_one_commit_are_one_snapshot_at_version_200(repository, kept):
    """58: 200 changes in one commit: snapshot at version 200."""
    commit(repository, *range(200))
    assert [what for what in kept.asked if what != "find"] == ["put 200"]
    assert version_of(kept) == 200


def test_of_150_commits_of_one_change_the_hundredth_takes_the_snapshot(repository, kept):
    """59: 150 single-change commits with interval 100: snapshot at 100, none before, reload 150."""
    for number in range(1, 151):
        commit(repository, 1)
        assert version_of(kept) == (100 if number >= 100 else 0)
    assert (repository.get(Counter, "42").version, repository.get(Counter, "42").count) == (
        150,
        150,
    )


# After the commit, and no failure of a command's


def test_a_snapshot_is_put_after_the_commit_and_not_if_it_failed(repository, store, kept):
    """Written only after the commit."""
    # given a commit that is refused
    commit(repository, 1)
    stale = Counter("42")
    for _ in range(200):
        stale.add()
    kept.asked.clear()
    # when
    with pytest.raises(ConcurrencyError):
        repository.save(stale)
    # then
    assert kept.asked == []
    # and when one succeeds, its events are there when the snapshot comes
    seen = []
    kept._ask = lambda what: seen.append((what, len(store._events)))
    commit(repository, *range(200))
    assert seen == [("find", 1), ("put 201", 201)]


@pytest.mark.parametrize("failing", ["find", "put"])
def test_a_snapshot_store_that_does_not_answer_fails_no_command(
    repository, store, kept, caplog, failing
):
    commit(repository, *range(100))
    kept.is_away = True
    with caplog.at_level(logging.WARNING):
        commit(repository, *range(200))
        assert repository.get(Counter, "42").version == 300
    text = "snapshot of SnapshotCounter-42 not {}: StoreUnavailable: "
    told = text.format("restored" if failing == "find" else "taken")
    assert any(record.message.startswith(told) for record in caplog.records)
    # and the next commit takes it, when it is back
    kept.is_away = False
    commit(repository, 1)
    assert version_of(kept) == 301


def test_a_state_that_can_not_be_kept_fails_no_command_and_is_logged(repository, kept, caplog):
    class Loose(Plain, name="SnapshotLoose", snapshot_every=2):
        @applies(SnapshotCounted)
        def _counted(self, event: SnapshotCounted) -> None:
            self.extra = object()

    loose = Loose("1")
    loose.add()
    loose.add()
    repository.save(loose)
    assert (loose.version, kept.asked) == (2, [])
    assert "does not annotate: ['extra']" in caplog.records[-1].why


def test_a_policy_that_raises_fails_no_command(repository, kept, caplog):
    class Broken:
        def is_due(self, facts: SnapshotFacts) -> bool:
            raise ZeroDivisionError

    class Odd(Plain, name="SnapshotOdd", snapshot_policy=Broken()):
        pass

    odd = Odd("1")
    odd.add()
    repository.save(odd)
    assert (odd.version, kept.asked) == (1, [])
    assert "ZeroDivisionError" in caplog.records[-1].why


# What does not fit


def test_one_of_another_schema_version_is_ignored_replayed_and_replaced(repository, store, kept):
    """54: another schema version: ignored, replayed, replaced."""
    commit(repository, *range(100))
    store.reads.clear()
    # when the next release loads it
    assert repository.get(NextCounter, "42").count == sum(range(100))
    assert store.reads == [0]
    # and commits
    commit(repository, 1, cls=NextCounter)
    snapshot = kept.find(STREAM)
    assert snapshot is not None
    assert (snapshot.version, snapshot.schema_version) == (101, 2)
    # then it is used again
    store.reads.clear()
    repository.get(NextCounter, "42")
    assert store.reads == [100]


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"shape":1,"state":{}}'])
def test_damaged_data_are_ignored_replayed_and_replaced(repository, store, kept, data):
    commit(repository, *range(100))
    kept._snapshots[STREAM] = Snapshot(STREAM, 100, 1, datetime.now(UTC), data)
    assert repository.get(Counter, "42").count == sum(range(100))
    commit(repository, 1)
    assert version_of(kept) == 101
    assert repository.get(Counter, "42").count == sum(range(100)) + 1


def test_one_that_is_ahead_of_its_events_is_removed_when_it_is_loaded(repository, store, kept):
    """As after a backup of the events was restored."""
    # given a snapshot at 100, and events up to 50 alone
    commit(repository, *range(100))
    del store._streams[STREAM][50:]
    # when
    counter = repository.get(Counter, "42")
    # then
    assert (counter.version, counter.count) == (50, sum(range(50)))
    assert version_of(kept) == 0
    commit(repository, 1)
    assert repository.get(Counter, "42").version == 51


def test_one_that_is_ahead_of_events_beside_it_is_removed_when_a_save_fails(store):
    # given a snapshot at 100 that is read together with the events, which are there up to 50 alone
    class Beside(WatchedSnapshots):
        def find_with_newer(self, stream, schema_version):
            found = self.find(stream)
            return found, store.read_stream(stream, after_version=found.version if found else 0)

    kept = Beside()
    repository = Repository(store, Serializer("shop"), snapshots=Snapshots(kept))
    commit(repository, *range(100))
    del store._streams[STREAM][50:]
    counter = repository.get(Counter, "42")
    assert counter.version == 100
    # when
    counter.add()
    with pytest.raises(ConcurrencyError):
        repository.save(counter)
    # then the repeated command succeeds
    commit(repository, 1)
    assert repository.get(Counter, "42").version == 51


def test_an_ordinary_conflict_removes_no_snapshot(repository, kept):
    commit(repository, *range(100))
    stale = repository.get(Counter, "42")
    commit(repository, 1)
    stale.add()
    with pytest.raises(ConcurrencyError):
        repository.save(stale)
    assert version_of(kept) == 100


# Policies


@pytest.mark.parametrize(
    ("policy", "facts", "is_due"),
    [
        (OlderThan(60), SnapshotFacts(100, 50, 59.0, 0.0), False),
        (OlderThan(60), SnapshotFacts(100, 50, 60.0, 0.0), True),
        (OlderThan(60), SnapshotFacts(100, 95, 60.0, 0.0), False),
        (OlderThan(60), SnapshotFacts(9, 0, None, 0.0), False),
        (OlderThan(60), SnapshotFacts(10, 0, None, 0.0), True),
        (SlowToLoad(0.05), SnapshotFacts(100, 0, None, 0.049), False),
        (SlowToLoad(0.05), SnapshotFacts(100, 0, None, 0.05), True),
        (SlowToLoad(0.05), SnapshotFacts(100, 91, 1.0, 9.0), False),
    ],
)
def test_policies_of_time(policy, facts, is_due):
    assert policy.is_due(facts) is is_due


def test_a_policy_of_age_goes_by_the_snapshots_time(store, kept):
    class Aged(Plain, alias_of=Plain, snapshot_policy=OlderThan(3600, at_least_events=1)):
        pass

    now = datetime(2026, 1, 1, tzinfo=UTC)
    repository = Repository(store, Serializer("shop"), snapshots=Snapshots(kept, clock=lambda: now))
    found = []
    for minutes in (0, 30, 29, 1, 60):
        now += timedelta(minutes=minutes)
        commit(repository, 1, cls=Aged)
        found.append(version_of(kept))
    assert found == [1, 1, 1, 4, 5]


def test_a_policy_of_load_time_gets_the_seconds_of_the_load(repository, kept):
    seen: list[SnapshotFacts] = []

    class Seeing:
        def is_due(self, facts: SnapshotFacts) -> bool:
            seen.append(facts)
            return False

    class Timed(Plain, alias_of=Plain, snapshot_policy=Seeing()):
        pass

    commit(repository, 1, cls=Timed)
    commit(repository, 1, cls=Timed)
    assert seen[0] == SnapshotFacts(1, 0, None, 0.0)
    assert seen[1].load_s > 0


def test_of_several_policies_one_suffices_and_a_subclass_inherits_them(repository, kept):
    class Both(Plain, alias_of=Plain, snapshot_every=3, snapshot_policy=SlowToLoad(1e9)):
        pass

    class Below(Both, alias_of=Plain):
        pass

    commit(repository, 1, 1, 1, cls=Below)
    assert version_of(kept) == 3


# In an application


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("shop", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://", task_always_eager=True)
    yield app
    app.close()


def kept_by(cqrs: Any) -> Snapshot:
    found = cqrs.store.snapshots().find(STREAM)
    assert isinstance(found, Snapshot)
    return found


def change(cqrs: CQRS, *counts: int) -> None:
    with cqrs.session() as session:
        counter = session.find(Counter, "42") or Counter("42")
        session.add(counter)
        for count in counts:
            counter.add(count)


def test_an_application_keeps_snapshots_where_its_events_are(app):
    cqrs = CQRS(app)
    change(cqrs, *range(100))
    assert kept_by(cqrs).version == 100


def test_an_application_may_keep_them_elsewhere_or_not_at_all(app, kept):
    change(CQRS(app, snapshots=kept), *range(100))
    assert version_of(kept) == 100
    settings = {"cqrs_event_store": "memory://", "cqrs_snapshots": "off"}
    other = CQRS(Celery("shop", changes=settings, set_as_current=False), snapshots=kept)
    change(other, *range(200))
    assert version_of(kept) == 100
    assert other.runtime.bus.repository.snapshots is None


def test_a_task_takes_them_where_that_is_set(app):
    app.conf.cqrs_snapshots = "task"
    cqrs = CQRS(app)
    change(cqrs, *range(100))
    assert kept_by(cqrs).version == 100
    assert app.tasks[TASK].apply(("SnapshotCounter", "42", 100)).get() == "nothing to do"
    change(cqrs, 1)
    assert app.tasks[TASK].apply(("SnapshotCounter", "42", 101)).get() == "taken"
    assert kept_by(cqrs).version == 101
    assert app.tasks[TASK].apply(("Nothing", "42", 1)).get() == "no snapshots"


def test_until_the_task_has_run_it_is_sent_once(store, kept):
    sent: list[tuple[StreamName, int]] = []
    snapshots = Snapshots(kept, defer=lambda stream, version: sent.append((stream, version)))
    repository = Repository(store, Serializer("shop"), snapshots=snapshots)
    for _ in range(105):
        commit(repository, 1)
    assert sent == [(STREAM, 100)]
    assert version_of(kept) == 0


def test_a_broker_that_does_not_take_the_task_fails_no_command(store, kept, caplog):
    def defer(stream: StreamName, version: int) -> None:
        raise ConnectionError("no broker")

    repository = Repository(store, Serializer("shop"), snapshots=Snapshots(kept, defer=defer))
    commit(repository, *range(100))
    assert "no broker" in caplog.records[-1].why


def test_what_can_have_no_snapshots_is_found_at_the_start(monkeypatch):
    # Without a policy, so that no other test finds it among the classes.
    class Bad(Aggregate):
        def __init__(self, id: str) -> None:
            super().__init__(id)
            self.lines: list[str] = []

    monkeypatch.setattr(app_snapshots, "snapshotted_classes", lambda: {"Bad": Bad})
    with pytest.raises(RegistrationError, match="lines"):
        check_snapshots()


def test_a_snapshot_is_the_state_that_its_events_make(repository):
    commit(repository, *range(100))
    loaded = repository.get(Counter, "42")
    replayed = repository.rebuild(Counter, "42", from_events_alone=True)
    loaded_state, replayed_state = (
        {k: v for k, v in vars(one).items() if k != "__ledger__"} for one in (loaded, replayed)
    )
    assert difference(loaded_state, replayed_state, exact=True) is None
