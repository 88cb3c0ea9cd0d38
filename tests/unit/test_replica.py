"""A replica that lags, is away, or is none: what is asked of it, and what of the primary."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli.events import Check
from cqrs_celery.errors import StoreUnavailable
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.store.events import START
from cqrs_celery.store.reading import Reads
from cqrs_celery.store.stream import NO_STREAM, StreamName
from cqrs_celery.testing.event_store_contract import append, event

BOLT = StreamName("inventory", "Item", "bolt")
NUT = StreamName("inventory", "Item", "nut")


def opened(url: str, read_url: str | None = None) -> SqlEventStore:
    store = open_event_store(url, read_url=read_url)
    assert isinstance(store, SqlEventStore)
    return store


@pytest.fixture
def primary(tmp_path: Path) -> Iterator[SqlEventStore]:
    """A store that has one stream, and a copy of its file in which there is none yet."""
    store = opened(f"sqlite:///{tmp_path}/primary.db")
    create_schema(store)
    store.close()
    shutil.copy(tmp_path / "primary.db", tmp_path / "replica.db")
    append(store, BOLT, NO_STREAM, event())
    yield store
    store.close()


@pytest.fixture
def replicated(primary: SqlEventStore, tmp_path: Path) -> Iterator[SqlEventStore]:
    """The same store, as another process sees it that reads from the copy."""
    store = opened(f"sqlite:///{tmp_path}/primary.db", f"sqlite:///{tmp_path}/replica.db")
    yield store
    store.close()


def test_the_outbox_reads_from_the_primary(replicated: SqlEventStore) -> None:
    # given a replica that lags
    assert list(replicated.read_all()) == []
    # then a relay gets what was committed nevertheless
    assert [one.stream for one in replicated.outbox.read(0, 10)] == [BOLT]
    assert [one.stream for one in replicated.outbox.read_behind(START, 10)] == [BOLT]


def test_a_check_of_all_events_reads_from_the_primary(replicated: SqlEventStore) -> None:
    check = Check(Serializer("inventory"))
    for _ in check.read(replicated, after_position=0):
        pass
    assert check.events == 1


def test_it_is_known_whether_a_replica_was_asked(replicated: SqlEventStore) -> None:
    # given a block in which only the primary may answer
    with Reads(from_primary=True) as reads:
        assert len(replicated.read_stream(BOLT)) == 1
        # and another one in that
        with Reads():
            assert len(replicated.read_history(BOLT)) == 1
    assert not reads.used_replica
    # when the replica may answer, in a block inside, then both know
    with Reads() as outer:
        with Reads() as inner:
            assert len(replicated.read_stream(BOLT)) == 0
        with Reads() as other:
            append(replicated, NUT, NO_STREAM, event())
            # what was written here is read from the primary
            assert len(replicated.read_stream(NUT)) == 1
    assert (outer.used_replica, inner.used_replica, other.used_replica) == (True, True, False)


def test_an_error_names_the_server_that_was_asked(primary: SqlEventStore, tmp_path: Path) -> None:
    # given a replica that is away
    store = opened(f"sqlite:///{tmp_path}/primary.db", f"sqlite:///{tmp_path}/nowhere/replica.db")
    # when it is asked, then the error names it
    with pytest.raises(StoreUnavailable, match=r"the replica sqlite:///.*/nowhere/replica\.db"):
        store.read_stream(BOLT)
    # and what the primary answers goes on
    assert store.find_command("c-1") is None
    assert len(store.outbox.read(0, 10)) == 1
    store.close()
