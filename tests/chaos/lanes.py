"""The application of the starvation run: a plain task, and a subscription that takes many events.

A worker runs `tests.chaos.lanes:app` on the server in LANES_URL. What has a tag is heard of in the
list `heard`; all else only runs.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from celery import Celery, shared_task

from cqrs_celery import CQRS, Aggregate, Event, RecordedEvent, applies, subscribes

#: Events that one task takes at most.
BATCH = 500

EVENTS = "lanes.events"


class Passed(Event, name="lanes.passed"):
    tag: str = ""


class Gate(Aggregate, name="Gate"):
    @applies(Passed)
    def _passed(self, event: Passed) -> None:
        """Change nothing."""


_clients: dict[int, Any] = {}


def _hear(*tags: str) -> None:
    if os.getpid() not in _clients:
        _clients[os.getpid()] = redis.Redis.from_url(os.environ["LANES_URL"])
    _clients[os.getpid()].rpush("heard", *tags)


@shared_task(name="plain", ignore_result=True, acks_late=True)
def plain(tag: str = "") -> None:
    if tag:
        _hear(tag)


@subscribes(Passed, subscription=EVENTS, batch=BATCH)
def events(recorded: list[RecordedEvent[Passed]]) -> None:
    tags = [one.event.tag for one in recorded if one.event.tag]
    if tags:
        _hear(*tags)


def connected(url: str) -> CQRS:
    """Return the application on a server."""
    app = Celery("lanes", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    return CQRS(app)


if "LANES_URL" in os.environ:
    app = connected(os.environ["LANES_URL"]).app
