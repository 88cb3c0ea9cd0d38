"""The parts of an application that its tasks use, and the lookup of the application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from weakref import ReferenceType, WeakKeyDictionary, ref

import celery

from ..errors import ConfigurationError, NotConfigured
from ..messages.serializer import Serializer
from ..store.events import DeadLetterPolicy
from ..store.ports import EventStore, Subscriptions
from .bus import Bus
from .context import app_of_handler


class SentQueues(Protocol):
    """An observer of the queues to which commands are sent."""

    def note_sent(self, queue: str, name: str) -> None:
        """Note that the command `name` was sent to a queue; this must be fast."""


@dataclass(frozen=True)
class Runtime:
    """The parts of one CQRS application.

    Attributes:
        app: the Celery application.
        serializer: encodes and decodes its messages.
        store: keeps its events.
        bus: runs its handlers.
        command_id_ttl_s: seconds for which a command is remembered.
        dead_letters: the policy for dead letters of subscriptions that do not set their own.
        subscriptions: the registration of subscribers, which workers use; None if there is none, as
            with a broker without topics.
        sent: the observer of the queues to which commands are sent; None for none.
    """

    app: celery.Celery
    serializer: Serializer
    store: EventStore
    bus: Bus
    command_id_ttl_s: int
    dead_letters: DeadLetterPolicy
    subscriptions: Subscriptions | None = None
    sent: SentQueues | None = None

    @property
    def application(self) -> str:
        """The application's name."""
        return self.serializer.application


#: The CQRS applications of this process that are in use, in the order of their creation.
_applications: WeakKeyDictionary[celery.Celery, ReferenceType[Any]] = WeakKeyDictionary()


def add_application(app: celery.Celery, source: Any) -> None:
    """Register a Celery application's `CQRS`; its `runtime` is read only when it is needed."""
    _applications[app] = ref(source)


def has_application(app: celery.Celery) -> bool:
    """Return whether a Celery application has a `CQRS`."""
    return app in _applications


def runtime_of(app: celery.Celery, what: str = "this") -> Runtime:
    """Return the runtime of a Celery application.

    Raises:
        NotConfigured: the application has no `CQRS`.
    """
    reference = _applications.get(app)
    source = reference() if reference else None
    if source is None:
        raise NotConfigured(
            f"{what} needs a CQRS app, but Celery's app {app.main!r} has none: make one with"
            " CQRS(app), or import the module that does"
        )
    return source.runtime  # type: ignore[no-any-return]


def current_app(what: str, name: str = "") -> celery.Celery:
    """Return the CQRS application to use here.

    If there are several in one process, it is the one whose name is the first segment of `name`. If
    none or several of them have that name, it is the one whose handler runs, else Celery's current
    one, else the newest. If a test's application in memory is Celery's current one, it is always
    that one, so that nothing leaves the test.

    Args:
        what: names the caller in errors.
        name: the registered name of the command or subscription that needs the application.

    Raises:
        NotConfigured: there is no CQRS application in this process.
    """
    applications = list(_applications)
    if not applications:
        raise NotConfigured(
            f"{what} needs a CQRS app, but there is none in this process: make one with CQRS(app),"
            " or import the module that does"
        )
    if len(applications) == 1:
        return applications[0]
    current = celery.current_app._get_current_object()
    if current in _applications and _takes_everything(current):
        return current
    application, dot, _ = name.partition(".")
    named = [app for app in applications if dot and _name_of(app) == application]
    candidates = named or applications
    for preferred in (app_of_handler(), current):
        if preferred in candidates:
            return preferred
    return candidates[-1]


def _takes_everything(app: celery.Celery) -> bool:
    """Return whether an application takes commands of all names, as in a test."""
    return bool(getattr(_applications[app](), "takes_everything", False))


def _name_of(app: celery.Celery) -> str:
    source = _applications[app]()
    try:
        return str(source.settings.application) if source is not None else ""
    except ConfigurationError:
        # The error is raised when that application is used.
        return str(app.main or "")
