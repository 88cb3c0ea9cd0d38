"""A Django application whose events are in its own database: visitors are rows, seats have events.

    with use_database(url):
        cqrs = make_app()

A worker runs `tests.playhouse:app`, on the broker in PLAYHOUSE_BROKER and the database in
PLAYHOUSE_DATABASE.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import django
from celery import Celery
from django.conf import settings
from django.db import connection, connections, models
from sqlalchemy.engine import make_url

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Session,
    applies,
    command_handler,
    subscribes,
)


def config_of(url: str) -> dict[str, Any]:
    """Return what DATABASES says of a database."""
    found = make_url(url)
    if found.get_backend_name() == "sqlite":
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": found.database,
            "OPTIONS": {"transaction_mode": "IMMEDIATE"},
        }
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": found.database,
        "USER": found.username,
        "HOST": found.host,
        "PORT": str(found.port),
    }


NONE = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}

if not settings.configured:
    settings.configure(DATABASES={"default": NONE}, USE_TZ=True)
    django.setup()


@contextmanager
def use_database(url: str) -> Iterator[None]:
    """Let Django's default database be the one with this URL, which gets the models' tables."""
    choose_database(url)
    with connection.schema_editor() as editor:
        editor.create_model(Visitor)
    try:
        yield
    finally:
        connections.close_all()


def choose_database(url: str) -> None:
    """Let Django's default database be the one with this URL."""
    connections.close_all()
    connections.settings.update(connections.configure_settings({"default": config_of(url)}))
    for alias in list(connections.settings):
        connections[alias]  # as it was
        del connections[alias]


class Visitor(models.Model):
    name = models.TextField()
    seat = models.TextField(default="")

    class Meta:
        app_label = "playhouse"


def visitors() -> list[str]:
    return sorted(visitor.name for visitor in Visitor.objects.all())


class SeatTaken(Event, name="playhouse.seat_taken"):
    by: str


class Seat(Aggregate, name="PlayhouseSeat"):
    by: str = ""
    count: int = 0

    def take(self, by: str) -> None:
        self.record(SeatTaken(by=by))

    @applies(SeatTaken)
    def _taken(self, event: SeatTaken) -> None:
        self.by = event.by
        self.count += 1


class TakeSeat(Command, name="playhouse.take_seat", aggregate=Seat, key="id"):
    id: str
    by: str


class NoteVisitor(Command, name="playhouse.note_visitor"):
    name: str


#: Called by the handler of TakeSeat once it has written its row.
in_between: list[Any] = []


@command_handler(TakeSeat)
def take_seat(command: TakeSeat, session: Session) -> str:
    seat = session.find(Seat, command.id) or Seat(command.id)
    session.add(seat)
    Visitor.objects.create(name=command.by, seat=command.id)
    for one in in_between:
        one(session)
    seat.take(command.by)
    if command.by == "rival":
        raise ValueError("no rivals")
    return command.by


@command_handler(NoteVisitor)
def note_visitor(command: NoteVisitor, session: Session) -> None:
    Visitor.objects.create(name=command.name)


@subscribes(SeatTaken, subscription="playhouse.usher")
def usher(event: SeatTaken, session: Session) -> None:
    Visitor.objects.create(name=f"{event.by}, ushered")


def make_app(broker: str = "memory://", **conf: Any) -> CQRS:
    """Return the application, its events in Django's database."""
    made = Celery("playhouse", broker=broker, set_as_current=False)
    made.conf.update(cqrs_event_store="django://default", task_ignore_result=True, **conf)
    if broker.startswith("redis:"):
        made.conf.broker_transport = "cqrs_celery.transport:Transport"
        made.conf.broker_transport_options = {"lease_s": 2}
    return CQRS(made)


if "PLAYHOUSE_BROKER" in os.environ:
    choose_database(os.environ["PLAYHOUSE_DATABASE"])
    app = make_app(os.environ["PLAYHOUSE_BROKER"]).app
