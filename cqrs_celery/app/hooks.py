"""Connect to a Celery application's signals: its configuration, its tasks, its workers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import celery
from celery.signals import celeryd_init

from ..dispatch.definitions import Definition, definitions
from ..dispatch.handler import task_of
from ..errors import ConfigurationError, DuplicateRegistration
from .snapshots import add_snapshot_task


class CeleryHooks:
    """The receivers of the signals of one Celery application and its workers.

    Signals hold only weak references to it: the caller must keep a reference.

    Args:
        app: the Celery application.
        choose_queues: adds the handlers' queues to those that a worker consumes.
    """

    def __init__(self, app: celery.Celery, choose_queues: Callable[[], None]) -> None:
        self._app = app
        self._choose_queues = choose_queues

    def connect(self) -> None:
        """Add steps to a worker's start; connect to the signals, including those already sent."""
        app = self._app
        app.steps["consumer"].add("cqrs_celery.workers.registration:RegistrationStep")
        app.steps["worker"].add("cqrs_celery.workers.relay:RelayStep")
        app.on_after_configure.connect(self._on_configured, weak=False)
        app.on_after_finalize.connect(self._on_finalized, weak=False)
        celeryd_init.connect(self._on_worker_init)
        definitions.listen(self._on_declared)
        if app.configured:
            self._on_configured(app)
        if app.finalized:
            self._on_finalized(app)

    def _on_configured(self, sender: Any = None, **_: Any) -> None:
        conf = self._app.conf
        if conf.worker_consumer == "celery.worker.consumer:Consumer":
            conf.worker_consumer = "cqrs_celery.workers.consumer:Consumer"

    def _on_finalized(self, sender: Any = None, **_: Any) -> None:
        add_snapshot_task(self._app)
        for definition in definitions.all():
            # Celery only logs what a signal's receiver raises. The error is raised again when the
            # task is used, and at a worker's start.
            with suppress(DuplicateRegistration):
                self._on_declared(definition)

    def _on_declared(self, definition: Definition) -> None:
        if self._app.finalized and definition.kind != "query":
            task_of(self._app, definition)

    def _on_worker_init(self, instance: Any = None, **_: Any) -> None:
        """Check the settings, and consume the queues of all handlers unless -Q names queues."""
        if instance is None or instance.app is not self._app:
            return
        # A step of the worker's start finds the error again, and can stop the worker.
        with suppress(ConfigurationError):
            self._choose_queues()
