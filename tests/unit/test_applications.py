"""Several applications in one process: routes are theirs, and those that are gone are forgotten."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler
from cqrs_celery.dispatch import runtime
from cqrs_celery.dispatch.tasks import route


class Planted(Event, name="garden.planted"):
    pass


class Bed(Aggregate):
    pass


class Plant(Command, name="garden.plant", aggregate=Bed, key="id"):
    id: str


@command_handler(Plant)
def plant(command: Plant, session: Session) -> None:
    bed = session.find(Bed, command.id) or Bed(command.id)
    bed.record(Planted())
    session.add(bed)


def application(name: str = "garden", **settings: Any) -> CQRS:
    app = Celery(name)
    app.conf.update(
        cqrs_event_store="memory://", task_always_eager=True, task_eager_propagates=True, **settings
    )
    return CQRS(app)


@pytest.mark.parametrize(
    ("settings", "options", "queue"),
    [
        ({}, {}, "garden.commands"),
        ({}, {"queue": "elsewhere"}, "elsewhere"),
        ({"task_routes": {"garden.*": {"queue": "routed"}}}, {}, None),
        ({"task_routes": {"other.*": {"queue": "routed"}}}, {}, "garden.commands"),
    ],
)
def test_a_command_goes_home_unless_somebody_says_otherwise(
    settings: dict[str, Any], options: dict[str, Any], queue: str | None
) -> None:
    cqrs = application(**settings)
    options = dict(options)
    route(cqrs.app, "garden.plant", options, home_queue="garden.commands")
    assert options.get("queue") == queue


def test_an_application_that_is_gone_is_forgotten() -> None:
    # given an application, and one made after it that is gone
    kept = application()
    gone = application("gone")
    reference = weakref.ref(gone)
    assert gone.app in runtime._applications
    kept.app.set_current()
    # when nobody holds it
    del gone
    gc.collect()
    # then nothing of it is left, and what is declared afterwards does not fail
    assert reference() is None
    assert all(source() is not None for source in runtime._applications.values())
