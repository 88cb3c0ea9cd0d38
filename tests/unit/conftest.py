"""Forget with each unit test what its own functions have declared, so that their order is free."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.domain import type_names
from cqrs_celery.messages.registry import registry


@pytest.fixture(autouse=True)
def own_declarations() -> Iterator[None]:
    """Remove the handlers, upcasters and aggregates that were defined inside the test."""
    handlers, upcasters = set(definitions._by_key), set(registry._upcasters)
    aggregates = set(type_names._owners)
    yield
    for name, cls in list(type_names._owners.items()):
        if name not in aggregates and _is_local(cls):
            del type_names._owners[name]
    for key, definition in list(definitions._by_key.items()):
        if key not in handlers and _is_local(definition.function):
            del definitions._by_key[key]
            definitions._names = {}
    for version, upcaster in list(registry._upcasters.items()):
        if version not in upcasters and _is_local(upcaster.function):
            del registry._upcasters[version]
            registry._found = {}
            registry.generation += 1


def _is_local(function: object) -> bool:
    return "<locals>" in getattr(function, "__qualname__", "")
