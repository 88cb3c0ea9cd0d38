"""The snapshot store in memory keeps the contract that every one keeps."""

import pytest

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.snapshot_store import MemorySnapshotStore
from cqrs_celery.testing.snapshot_store_contract import SnapshotStoreContract


class TestMemorySnapshotStore(SnapshotStoreContract):
    @pytest.fixture
    def snapshots(self) -> MemorySnapshotStore:
        return MemorySnapshotStore()


def test_an_event_store_in_memory_has_one_of_them():
    store = MemoryEventStore()
    assert store.snapshots() is store.snapshots()
