"""Open the snapshot store, and add the task that takes snapshots if the settings ask for it."""

from __future__ import annotations

import logging
from typing import Any, Final

import celery

from ..dispatch.runtime import runtime_of
from ..domain.classes import snapshotted_classes
from ..domain.state import codec_of
from ..errors import InvalidSetting
from ..session.snapshots import Defer, Snapshots
from ..store.capabilities import capabilities_of, check_snapshot_capabilities
from ..store.ports import EventStore, SnapshotStore
from ..store.stream import StreamName
from .no_store import NoEventStore
from .settings import IN_A_TASK, OFF, Settings

logger = logging.getLogger(__name__)

#: The task that takes a snapshot.
TASK: Final = "cqrs_celery.take_snapshot"


def open_snapshots(
    app: celery.Celery, settings: Settings, store: EventStore, given: SnapshotStore | None
) -> Snapshots | None:
    """Return the application's snapshots, or None if they are off or no store keeps them.

    Args:
        app: the Celery application; it sends the task, if a task takes the snapshots.
        settings: its settings, which say when snapshots are taken.
        store: the event store; it keeps the snapshots too, if it can.
        given: a snapshot store to use instead; None for the event store's.

    Raises:
        InvalidSetting: a store lacks a method of its port, or of a port that it declares.
    """
    if settings.snapshots == OFF:
        return None
    if given is not None:
        check_snapshot_capabilities(given)
    kept = _kept_beside_events(store) if given is None else given
    if kept is None:
        return None
    defer = _sender(app, settings) if settings.snapshots == IN_A_TASK else None
    return Snapshots(kept, defer=defer, compression=settings.compression)


def _kept_beside_events(store: EventStore) -> SnapshotStore | None:
    keeping = capabilities_of(store).snapshots
    return None if keeping is None else keeping.snapshots()


def snapshot_queue(application: str) -> str:
    """Return the name of the queue of the task that takes snapshots."""
    return f"{application}.snapshots"


def _sender(app: celery.Celery, settings: Settings) -> Defer:
    def send(stream: StreamName, version: int) -> None:
        # Not retried: if this is lost, the aggregate's next commit sends it again.
        app.tasks[TASK].apply_async(
            (stream.aggregate_type, stream.aggregate_id, version),
            queue=snapshot_queue(settings.application),
            retry=False,
        )

    return send


def add_snapshot_task(app: celery.Celery) -> None:
    """Add the task that takes a snapshot to an application."""

    def take_snapshot(aggregate_type: str, aggregate_id: str, version: int) -> str:
        return _take(runtime_of(app, TASK).bus.repository, aggregate_type, aggregate_id, version)

    # Late acknowledgement: if the worker dies, another one gets the task. If only the child process
    # dies, the snapshot is given up until the next commit asks for it.
    app.task(name=TASK, shared=False, ignore_result=True, serializer="json", acks_late=True)(
        take_snapshot
    )


def _take(repository: Any, aggregate_type: str, aggregate_id: str, version: int) -> str:
    """Take a snapshot at a version or later, unless there is one; return what was done."""
    snapshots: Snapshots | None = repository.snapshots
    cls = snapshotted_classes().get(aggregate_type)
    if snapshots is None or cls is None:
        return "no snapshots"
    aggregate = repository.rebuild(cls, aggregate_id)
    if aggregate is None or aggregate.__ledger__.snapshot_version >= version:
        return "nothing to do"
    is_kept = snapshots.take(aggregate, repository.stream_of(cls, aggregate_id))
    return "taken" if is_kept else "there is a newer one"


def check_snapshots() -> None:
    """Check that snapshots can hold the state of every aggregate class that asks for them.

    Raises:
        RegistrationError: they can't hold the state of one class.
    """
    for cls in snapshotted_classes().values():
        codec_of(cls).check()


def check_no_snapshots(app: celery.Celery, store: EventStore) -> None:
    """Check that the settings do not ask for snapshots, for an event store that keeps none.

    Only the setting `cqrs_snapshots` counts as asking. Without it, an aggregate class with
    snapshots is loaded from its events alone, which takes longer and changes nothing else.

    Args:
        app: the Celery application, which has the settings.
        store: the event store.

    Raises:
        InvalidSetting: the setting asks for snapshots, and an aggregate class has them.
    """
    asked = app.conf.get("cqrs_snapshots", OFF)
    if asked != OFF and snapshotted_classes() and not isinstance(store, NoEventStore):
        raise InvalidSetting(
            f"the setting cqrs_snapshots is {asked!r}, and the event store"
            f" {type(store).__qualname__} keeps no snapshots. Give CQRS(app, snapshots=…) a"
            " snapshot store; or let the event store declare snapshots among its capabilities, and"
            " a wrapper forward those; or set cqrs_snapshots = 'off'.",
            setting="cqrs_snapshots",
            accepted="'off', or an event store that keeps snapshots",
        )
