"""Find the aggregate classes of this process."""

from __future__ import annotations

from collections.abc import Iterator

from .aggregate import Aggregate


def aggregate_classes() -> Iterator[type[Aggregate]]:
    """Yield every aggregate class that this process has imported, bases before subclasses."""
    waiting = list(Aggregate.__subclasses__())
    while waiting:
        cls = waiting.pop(0)
        yield cls
        waiting += cls.__subclasses__()


def snapshotted_classes() -> dict[str, type[Aggregate]]:
    """Return the classes that have snapshots, by aggregate type; if two share a type, the last."""
    return {
        cls.__aggregate_type__: cls
        for cls in aggregate_classes()
        if cls.__snapshot_policy__ is not None
    }
