"""The tests of what a store declares that it can do."""

# ruff: noqa: S101, D102  the name of a test is its sentence, and pytest's assertions are asserts

from __future__ import annotations

from ...store.capabilities import capabilities_of, check_capabilities
from ...store.ports import EventStore
from ...store.stream import NO_STREAM
from .base import BOLT, StoreTests, append, event


class CapabilityTests(StoreTests):
    """The tests of a store's capabilities."""

    def test_a_store_has_the_methods_of_what_it_declares(self, store: EventStore) -> None:
        check_capabilities(store)
        assert capabilities_of(store) == capabilities_of(store)

    def test_a_transaction_that_it_declares_appends_or_rolls_back(self, store: EventStore) -> None:
        """Only of a store that has transactions: see `TransactionalStore`."""
        transactions = capabilities_of(store).transactions
        if transactions is None:
            return
        transaction = transactions.begin()
        assert transaction.connection is not None
        transaction.rollback()
        assert list(store.read_stream(BOLT)) == []
        append(store, BOLT, NO_STREAM, event())

    def test_a_snapshot_store_that_it_declares_has_none_of_a_new_stream(
        self, store: EventStore
    ) -> None:
        """Only of a store that keeps snapshots: see `SnapshottingStore`."""
        keeping = capabilities_of(store).snapshots
        if keeping is not None:
            assert keeping.snapshots().find(BOLT) is None
