"""Open where snapshots are kept, and have them taken in a task where the settings say so."""

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
    """Return what takes snapshots; None where they are off, or there is nowhere to keep them.

    Args:
        app: sends the task, where a task takes them.
        settings: say who takes them.
        store: keeps the events, and the snapshots too, if it can.
        given: keeps the snapshots in its place.

    Raises:
        InvalidSetting: what was given lacks a method of its port, or of one that it declares.
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
    """Return the queue of the task that takes snapshots."""
    return f"{application}.snapshots"


def _sender(app: celery.Celery, settings: Settings) -> Defer:
    def send(stream: StreamName, version: int) -> None:
        # Once: what is lost here, the next commit asks for again.
        app.tasks[TASK].apply_async(
            (stream.aggregate_type, stream.aggregate_id, version),
            queue=snapshot_queue(settings.application),
            retry=False,
        )

    return send


def add_snapshot_task(app: celery.Celery) -> None:
    """Give an application the task that takes a snapshot."""

    def take_snapshot(aggregate_type: str, aggregate_id: str, version: int) -> str:
        return _take(runtime_of(app, TASK).bus.repository, aggregate_type, aggregate_id, version)

    # Late: of a worker that dies over it, another one gets it. A state whose taking kills the child
    # process alone is given up, until a commit asks again.
    app.task(name=TASK, shared=False, ignore_result=True, serializer="json", acks_late=True)(
        take_snapshot
    )


def _take(repository: Any, aggregate_type: str, aggregate_id: str, version: int) -> str:
    """Take a snapshot at a version or a later one, unless there is one; return what was done."""
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
    """Check that every class of aggregates that has snapshots can have some.

    Raises:
        RegistrationError: one can't.
    """
    for cls in snapshotted_classes().values():
        codec_of(cls).check()


def check_no_snapshots(app: celery.Celery, store: EventStore) -> None:
    """Check that nobody asks for snapshots, where there is nowhere to keep them.

    Only the setting `cqrs_snapshots` asks for them. An aggregate that would have some is loaded
    from its events alone, which takes longer and changes nothing else.

    Args:
        app: has the settings.
        store: keeps the events.

    Raises:
        InvalidSetting: the setting asks for them, and an aggregate would have some.
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
