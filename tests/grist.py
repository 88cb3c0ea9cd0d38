"""The application that is fed with bytes: it counts what ran, and says what it did not run.

A worker runs `tests.grist:app` on the server in GRIST_URL, with a CQRS application if GRIST_CQRS is
set and as plain Celery without. It notes the ids of the messages that ran, and came too late.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery, signals

from cqrs_celery import CQRS, Command, command_handler

NAME = "grist"

#: The sets of the ids of messages whose task was run, and of those whose task had expired.
RUNS, EXPIRED = "runs", "expired"
#: The list of what sentinels were called.
SENTINELS = "sentinels"


class Grind(Command, name="grist.grind"):
    id: str
    parts: tuple[Any, ...] = ()


@command_handler(Grind)
def grind(command: Grind) -> str:
    return command.id


def client(url: str, *, is_cqrs: bool) -> Celery:
    """Return the application on a server."""
    app = Celery(NAME, broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_transport_options={"lease_s": 10},
        broker_connection_retry_on_startup=True,
        worker_send_task_events=True,
        result_expires=60,
    )
    if is_cqrs:
        CQRS(app)

    @app.task(name="grist.work", shared=False)
    def work(*args: Any, **kwargs: Any) -> int:
        return len(args) + len(kwargs)

    @app.task(name="grist.late_work", shared=False, acks_late=True, reject_on_worker_lost=True)
    def late_work(*args: Any, **kwargs: Any) -> int:
        return len(args) + len(kwargs)

    if not is_cqrs:
        app.task(name="grist.grind", shared=False)(work.run)

    @app.task(name="grist.sentinel", shared=False, acks_late=True)
    def sentinel(name: str) -> None:
        _server().rpush(SENTINELS, name)

    return app


_clients: dict[int, redis.Redis] = {}


def _server() -> redis.Redis:
    pid = os.getpid()
    if pid not in _clients:
        _clients[pid] = redis.Redis.from_url(os.environ["GRIST_URL"])
    return _clients[pid]


def _note(outcome: str, properties: dict[str, Any]) -> None:
    _, message_id, _ = properties["delivery_info"]["cqrs_lease"]
    _server().sadd(outcome, message_id)


def _on_run(sender: Any = None, **_: Any) -> None:
    if sender.name != "grist.sentinel":
        _note(RUNS, sender.request.properties)


def _on_revoked(request: Any = None, **_: Any) -> None:
    _note(EXPIRED, request.properties)


if "GRIST_URL" in os.environ:
    app = client(os.environ["GRIST_URL"], is_cqrs=bool(os.environ.get("GRIST_CQRS")))
    signals.task_prerun.connect(_on_run)
    signals.task_revoked.connect(_on_revoked)
