"""What tasks need of the application that they run in, and how they find it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, ref

import celery

from ..errors import NotConfigured
from ..messages.serializer import Serializer
from ..store.events import DeadLetterPolicy
from ..store.ports import EventStore, Subscriptions
from .bus import Bus


@dataclass(frozen=True)
class Runtime:
    """Be what one CQRS application is made of.

    Attributes:
        app: the Celery application.
        serializer: encodes and decodes its messages.
        store: keeps its events.
        bus: runs its handlers.
        command_id_ttl_s: seconds for which a command is remembered.
        dead_letters: what its subscriptions' dead letters do, where these don't say otherwise.
        subscriptions: where workers say who gets which events and messages; None where nobody is
            told, as with a broker that has no topics.
    """

    app: celery.Celery
    serializer: Serializer
    store: EventStore
    bus: Bus
    command_id_ttl_s: int
    dead_letters: DeadLetterPolicy
    subscriptions: Subscriptions | None = None

    @property
    def application(self) -> str:
        """The application's name."""
        return self.serializer.application


#: The CQRS applications of this process that are in use, in the order of their making.
_applications: WeakKeyDictionary[celery.Celery, ReferenceType[Any]] = WeakKeyDictionary()


def add_application(app: celery.Celery, source: Any) -> None:
    """Make a Celery application's `CQRS` known; it is asked for its `runtime` when needed."""
    _applications[app] = ref(source)


def runtime_of(app: celery.Celery, what: str = "this") -> Runtime:
    """Return the runtime of a Celery application.

    Raises:
        NotConfigured: it has none.
    """
    reference = _applications.get(app)
    source = reference() if reference else None
    if source is None:
        raise NotConfigured(
            f"{what} needs a CQRS app, but Celery's app {app.main!r} has none: make one with"
            " CQRS(app), or import the module that does"
        )
    return source.runtime  # type: ignore[no-any-return]


def current_app(what: str) -> celery.Celery:
    """Return the CQRS application to use here: Celery's current one, else the newest.

    Raises:
        NotConfigured: there is none in this process.
    """
    applications = list(_applications)
    if not applications:
        raise NotConfigured(
            f"{what} needs a CQRS app, but there is none in this process: make one with CQRS(app),"
            " or import the module that does"
        )
    current = celery.current_app._get_current_object()
    return current if current in _applications else applications[-1]
