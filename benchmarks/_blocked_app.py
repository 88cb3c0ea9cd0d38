"""The application of `benchmarks.blocked_sequences`: events that nobody can handle, and others."""

from __future__ import annotations

import os

from celery import Celery

from cqrs_celery import CQRS, Aggregate, Event, RecordedEvent, subscribes

#: What the ids of aggregates begin with whose events fail.
BAD = "bad-"

QUEUE = "blocked.read"

#: Longer than a benchmark: no letter is tried again in it.
NEVER_S = 86_400


class Happened(Event, name="blocked.happened"):
    number: int


class Thing(Aggregate, name="BlockedThing"):
    pass


@subscribes(Happened, subscription=QUEUE, max_retries=0)
def read(event: Happened, recorded: RecordedEvent[Happened]) -> None:
    """Fail where that is wanted."""
    if recorded.aggregate_id.startswith(BAD):
        raise ValueError("this one always fails")


def client(url: str) -> CQRS:
    """Return the application on a server."""
    app = Celery("blocked", broker=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_transport_options={"lease_s": 600},
        cqrs_redrive_first_s=NEVER_S,
        cqrs_redrive_max_s=NEVER_S,
    )
    return CQRS(app)


if "BLOCKED_URL" in os.environ:
    app = client(os.environ["BLOCKED_URL"]).app
