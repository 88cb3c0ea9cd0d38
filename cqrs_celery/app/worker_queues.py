"""Choose the queues that a worker consumes: those of all handlers, unless -Q names queues."""

from __future__ import annotations

import celery

from ..dispatch.definitions import definitions
from ..dispatch.handler import task_of
from ..transport.envelope import BATCH_ARGUMENT
from .settings import IN_A_TASK, Settings
from .snapshots import snapshot_queue


def choose_queues(app: celery.Celery, settings: Settings) -> None:
    """Add the handlers' queues to those that a worker consumes by default.

    With -Q, Celery adds none of them.

    Raises:
        ConfigurationError: a handler's task can't be made.
    """
    queues = app.amqp.queues
    for definition in definitions.all():
        if definition.kind != "query":
            queues.select_add(task_of(app, definition).home_queue)
    if settings.snapshots == IN_A_TASK:
        queues.select_add(snapshot_queue(settings.application))
    _tell_batches(app)


def _tell_batches(app: celery.Celery) -> None:
    """Set the batch size on each consumed queue whose function takes a batch of events."""
    queues = app.amqp.queues
    for definition in definitions.all():
        name = task_of(app, definition).home_queue if definition.batch else ""
        if name in queues.consume_from:
            queue = queues.consume_from[name]
            told = queue.queue_arguments or {}
            most = max(definition.batch, told.get(BATCH_ARGUMENT, 0))
            queue.queue_arguments = {**told, BATCH_ARGUMENT: most}
