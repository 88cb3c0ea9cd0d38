"""What every snapshot store passes.

Give the class a store, and pytest runs it:

    class TestMySnapshotStore(SnapshotStoreContract):
        @pytest.fixture
        def snapshots(self): return MySnapshotStore(...)

The store is new and empty for each test. A store that keeps snapshots next to the events, and none
of a stream that has no events, overrides `prepare` to make the streams. One that reads the events
behind a snapshot in the same step passes `SnapshotsBesideEventsContract` too, which is given the
event store.
"""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ..errors import InvalidText
from ..store.events import StreamAppend
from ..store.ports import SnapshotsBesideEvents, SnapshotStore, SnapshottingStore
from ..store.snapshot import Snapshot
from ..store.stream import NO_STREAM, StreamName
from .event_store_contract import BOLT, LOOKALIKES, NOT_KEPT, NUT, STRANGE_IDS, events, race


class SnapshotStoreContract:
    """The tests of the SnapshotStore port."""

    @pytest.fixture
    def snapshots(self) -> SnapshotStore:
        """Return a new, empty store; every class of tests overrides this."""
        raise NotImplementedError(
            f"{type(self).__name__} has no store: override the fixture `snapshots` to return a new,"
            " empty one"
        )

    def prepare(self, snapshots: SnapshotStore, streams: Iterable[StreamName]) -> None:
        """Make streams that have snapshots later; by default they need not be there."""

    def put(self, snapshots: SnapshotStore, snapshot: Snapshot) -> bool:
        """Put a snapshot of a stream that is there."""
        self.prepare(snapshots, [snapshot.stream])
        return snapshots.put(snapshot)

    # One snapshot

    def test_a_stream_without_a_snapshot_has_none(self, snapshots: SnapshotStore) -> None:
        assert snapshots.find(BOLT) is None
        self.prepare(snapshots, [BOLT])
        assert snapshots.find(BOLT) is None

    def test_what_was_put_is_found(self, snapshots: SnapshotStore) -> None:
        new = snapshot()
        assert self.put(snapshots, new) is True
        assert snapshots.find(BOLT) == new

    @pytest.mark.parametrize(
        "data",
        [
            b"{}",
            '{"name":"naïve 物品 🔩"}'.encode(),
            b'{"quotes":"\\"\\\\ \'","nul":"\\u0000","half":"\\ud800"}',
            b'{"b":1,  "a":2,"b":3}',
            b'{"big":123456789012345678901234567890,"small":1e-300}',
            b'{"text":"' + b"x" * 1_000_000 + b'"}',
        ],
        ids=["empty", "unicode", "escapes", "order", "numbers", "large"],
    )
    def test_data_come_back_byte_for_byte(self, snapshots: SnapshotStore, data: bytes) -> None:
        self.put(snapshots, snapshot(data=data))
        found = snapshots.find(BOLT)
        assert found is not None
        assert found.data == data

    @pytest.mark.parametrize("microsecond", [0, 1, 678_901, 999_999])
    def test_its_time_is_utc_to_the_microsecond(
        self, snapshots: SnapshotStore, microsecond: int
    ) -> None:
        taken_at = datetime(2026, 3, 29, 1, 30, 59, microsecond, tzinfo=UTC)
        self.put(snapshots, snapshot(taken_at=taken_at))
        found = snapshots.find(BOLT)
        assert found is not None
        assert found.taken_at == taken_at
        assert found.taken_at.utcoffset() == timedelta(0)

    @pytest.mark.parametrize("aggregate_id", STRANGE_IDS)
    def test_any_id_is_found_again(self, snapshots: SnapshotStore, aggregate_id: str) -> None:
        strange = snapshot(stream=BOLT._replace(aggregate_id=aggregate_id))
        self.put(snapshots, strange)
        assert snapshots.find(strange.stream) == strange
        assert listed(snapshots) == [strange.stream]

    @pytest.mark.parametrize("bad", NOT_KEPT, ids=["nul", "half of a pair"])
    def test_an_id_that_not_every_store_can_hold_is_refused(
        self, snapshots: SnapshotStore, bad: str
    ) -> None:
        strange = snapshot(stream=BOLT._replace(aggregate_id=bad))
        for use in (snapshots.find, snapshots.remove):
            with pytest.raises(InvalidText, match="the stream's name"):
                use(strange.stream)
        with pytest.raises(InvalidText, match="the stream's name"):
            snapshots.put(strange)

    @pytest.mark.parametrize(("one", "other"), LOOKALIKES)
    def test_ids_that_look_alike_have_snapshots_of_their_own(
        self, snapshots: SnapshotStore, one: str, other: str
    ) -> None:
        first, second = (
            snapshot(stream=BOLT._replace(aggregate_id=name), version=version)
            for version, name in enumerate((one, other), 1)
        )
        self.put(snapshots, first)
        self.put(snapshots, second)
        assert snapshots.find(first.stream) == first
        assert snapshots.find(second.stream) == second

    @pytest.mark.parametrize(
        "elsewhere", [BOLT._replace(aggregate_type="Order"), BOLT._replace(application="shop")]
    )
    def test_one_id_under_another_type_or_application_is_another_stream(
        self, snapshots: SnapshotStore, elsewhere: StreamName
    ) -> None:
        self.put(snapshots, snapshot())
        self.prepare(snapshots, [elsewhere])
        assert snapshots.find(elsewhere) is None

    # The next one

    @pytest.mark.parametrize("version", [7, 8, 5_000])
    def test_one_as_new_or_newer_takes_its_place(
        self, snapshots: SnapshotStore, version: int
    ) -> None:
        self.put(snapshots, snapshot(version=7))
        newer = snapshot(version=version, data=b'{"count":2}')
        assert snapshots.put(newer) is True
        assert snapshots.find(BOLT) == newer
        assert listed(snapshots) == [BOLT]

    @pytest.mark.parametrize("version", [1, 6])
    def test_an_older_one_that_comes_late_does_not(
        self, snapshots: SnapshotStore, version: int
    ) -> None:
        kept = snapshot(version=7)
        self.put(snapshots, kept)
        assert snapshots.put(snapshot(version=version, data=b'{"count":2}')) is False
        assert snapshots.find(BOLT) == kept

    @pytest.mark.parametrize("schema_version", [1, 3])
    @pytest.mark.parametrize("version", [1, 7, 8])
    def test_one_of_another_schema_version_takes_its_place_whatever_its_version(
        self, snapshots: SnapshotStore, schema_version: int, version: int
    ) -> None:
        self.put(snapshots, snapshot(version=7, schema_version=2))
        other = snapshot(version=version, schema_version=schema_version)
        assert snapshots.put(other) is True
        assert snapshots.find(BOLT) == other

    def test_of_many_put_at_once_the_newest_stays(self, snapshots: SnapshotStore) -> None:
        self.prepare(snapshots, [BOLT])

        def put_ten(number: int) -> None:
            for step in range(10):
                snapshots.put(snapshot(version=1 + step * 8 + number))

        race(put_ten)
        assert snapshots.find(BOLT) == snapshot(version=80)

    # Removing

    def test_what_was_removed_is_gone(self, snapshots: SnapshotStore) -> None:
        self.put(snapshots, snapshot())
        assert snapshots.remove(BOLT) is True
        assert snapshots.find(BOLT) is None
        assert listed(snapshots) == []

    def test_to_remove_what_is_not_there_does_nothing(self, snapshots: SnapshotStore) -> None:
        assert snapshots.remove(BOLT) is False

    def test_others_stay(self, snapshots: SnapshotStore) -> None:
        self.put(snapshots, snapshot())
        self.put(snapshots, snapshot(stream=NUT))
        snapshots.remove(BOLT)
        assert snapshots.find(NUT) == snapshot(stream=NUT)

    def test_after_a_removal_an_older_one_may_be_put(self, snapshots: SnapshotStore) -> None:
        self.put(snapshots, snapshot(version=7))
        snapshots.remove(BOLT)
        assert snapshots.put(snapshot(version=3)) is True

    # Listing

    def test_the_streams_of_a_type_that_have_snapshots_are_listed(
        self, snapshots: SnapshotStore
    ) -> None:
        order = BOLT._replace(aggregate_type="Order")
        shop = BOLT._replace(application="shop")
        for stream in (BOLT, NUT, order, shop):
            self.put(snapshots, snapshot(stream=stream))
        self.prepare(snapshots, [BOLT._replace(aggregate_id="bare")])
        assert listed(snapshots) == [BOLT, NUT]
        assert list(snapshots.streams("inventory", "Order")) == [order]
        assert list(snapshots.streams("shop", "InventoryItem")) == [shop]
        assert list(snapshots.streams("nobody", "InventoryItem")) == []

    def test_types_that_look_alike_are_listed_apart(self, snapshots: SnapshotStore) -> None:
        streams = [BOLT._replace(aggregate_type=name) for name in ("Order", "order", "Order ")]
        for stream in streams:
            self.put(snapshots, snapshot(stream=stream))
        for stream in streams:
            assert list(snapshots.streams(stream.application, stream.aggregate_type)) == [stream]

    def test_many_are_listed_whole_also_while_they_are_removed(
        self, snapshots: SnapshotStore
    ) -> None:
        streams = [BOLT._replace(aggregate_id=str(number)) for number in range(600)]
        self.prepare(snapshots, streams)
        for stream in streams:
            snapshots.put(snapshot(stream=stream))
        assert listed(snapshots) == sorted(streams)
        for stream in snapshots.streams("inventory", "InventoryItem"):
            snapshots.remove(stream)
        assert listed(snapshots) == []


class SnapshotsBesideEventsContract:
    """The tests of an event store whose snapshots are SnapshotsBesideEvents."""

    @pytest.fixture
    def store(self) -> SnapshottingStore:
        """Return a new, empty event store; every class of tests overrides this."""
        raise NotImplementedError(
            f"{type(self).__name__} has no store: override the fixture `store` to return a new,"
            " empty event store that keeps snapshots"
        )

    def test_a_snapshot_comes_with_the_events_behind_it(self, store: Any) -> None:
        # given streams of 7 events, one of them with a snapshot at 5
        store.append([StreamAppend(stream, NO_STREAM, events(7)) for stream in (NUT, BOLT)])
        snapshots: SnapshotsBesideEvents = store.snapshots()
        data = '{"größe":"\\u0000 \U0001f527"}'.encode()
        kept = snapshot(version=5, schema_version=3, data=data)
        snapshots.put(kept)
        # then it comes with the two behind it, as each comes by itself
        found, newer = snapshots.find_with_newer(BOLT, 3)
        assert found == snapshots.find(BOLT) == kept
        assert list(newer) == list(store.read_stream(BOLT, after_version=5))
        assert [event.version for event in newer] == [6, 7]

    @pytest.mark.parametrize(("stream", "schema_version"), [(BOLT, 2), (NUT, 3)])
    def test_without_one_of_the_schema_version_all_events_come(
        self, store: Any, stream: StreamName, schema_version: int
    ) -> None:
        store.append([StreamAppend(name, NO_STREAM, events(7)) for name in (NUT, BOLT)])
        store.snapshots().put(snapshot(version=5, schema_version=3))
        found, newer = store.snapshots().find_with_newer(stream, schema_version)
        assert found is None
        assert list(newer) == list(store.read_stream(stream))

    @pytest.mark.parametrize("version", [7, 8])
    def test_a_snapshot_that_nothing_is_behind_comes_alone(self, store: Any, version: int) -> None:
        store.append([StreamAppend(BOLT, NO_STREAM, events(7))])
        store.snapshots().put(snapshot(version=version))
        assert store.snapshots().find_with_newer(BOLT, 1) == (snapshot(version=version), [])

    def test_a_stream_that_is_not_there_has_neither(self, store: Any) -> None:
        assert store.snapshots().find_with_newer(BOLT, 1) == (None, [])


def snapshot(
    *,
    stream: StreamName = BOLT,
    version: int = 7,
    schema_version: int = 1,
    taken_at: datetime = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC),
    data: bytes = b'{"count":1}',
) -> Snapshot:
    """Return a snapshot."""
    return Snapshot(stream, version, schema_version, taken_at, data)


def listed(snapshots: SnapshotStore) -> list[StreamName]:
    """Return the streams of the usual type that have snapshots, sorted."""
    return sorted(snapshots.streams("inventory", "InventoryItem"))
