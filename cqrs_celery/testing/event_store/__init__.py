"""The tests that every event store passes, by theme; `event_store_contract` gathers them."""
