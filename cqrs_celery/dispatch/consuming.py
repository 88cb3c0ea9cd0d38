"""Warn at a worker's start if its configuration would take no messages, or would lose events.

Every declaration of a handler imports this module, so it warns without a CQRS app, too.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.signals import worker_ready

from .definitions import Definition, definitions
from .handler import task_of
from .runtime import has_application

logger = logging.getLogger(__name__)


@worker_ready.connect
def warn_of_what_is_missing(sender: Any = None, **_: Any) -> None:
    """Warn about a worker without a CQRS app, handlers, their queues or a lasting event store."""
    app = sender.app
    declared = [one for one in definitions.all() if one.kind != "query"]
    if has_application(app):
        _check_queues(app, declared)
        if app.conf.get("cqrs_event_store") == "memory://":
            logger.warning(
                "this worker of %s has cqrs_event_store = 'memory://': each of its processes has"
                " events of its own, which no other process sees, and which are lost when it ends."
                " Name a store that processes share: 'broker', or the URL of a SQL database",
                app.main,
            )
    elif declared:
        logger.warning(
            "the Celery app %s has no CQRS, so nothing takes the messages of its %d handlers and"
            " subscriptions (the first is %s). Make one where the app is made: cqrs = CQRS(app)",
            app.main,
            len(declared),
            ".".join(declared[0].place),
        )


def _check_queues(app: Any, declared: list[Definition]) -> None:
    if not declared:
        logger.warning(
            "no handler or subscription is declared in this worker of %s, so it takes no commands"
            " and no events. Import their modules where the app is made, name them in Celery's"
            " setting include, or call cqrs.autodiscover()",
            app.main,
        )
        return
    homes = sorted({task_of(app, definition).home_queue for definition in declared})
    consumed = sorted(app.amqp.queues.consume_from)
    if not set(homes) & set(consumed):
        logger.warning(
            "this worker of %s consumes no queue of a handler or subscription: it consumes %s;"
            " those are %s. Start it without -Q, or with -Q %s",
            app.main,
            ", ".join(consumed) or "nothing",
            ", ".join(homes),
            ",".join(homes),
        )
