"""The application that `benchmarks.event_store` appends to in Redis, and starts workers of.

BENCH_BROKER is the broker's URL, BENCH_STORE the event store's if it is another one, BENCH_OUT the
file in which one subscription writes when an event was sent and when it was handled.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

from celery import Celery

from cqrs_celery import CQRS, Aggregate, Event, applies, subscribes
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.workers.registration import subscriber_of

#: When an event was sent, and when its handler began, by the machine's monotonic clock.
STAMP = struct.Struct("dd")


class Checked(Event, name="bench.checked"):
    count: int
    note: str
    sent_at: float = 0.0


class Item(Aggregate, name="Item"):
    count: int = 0

    @applies(Checked)
    def _checked(self, event: Checked) -> None:
        self.count += event.count


@subscribes(Checked, subscription="bench.one")
def one(event: Checked) -> None:
    now = time.monotonic()
    with Path(os.environ["BENCH_OUT"]).open("ab") as file:
        file.write(STAMP.pack(event.sent_at, now))


@subscribes(Checked, subscription="bench.two")
def two(event: Checked) -> None: ...


@subscribes(Checked, subscription="bench.three")
def three(event: Checked) -> None: ...


app = Celery("bench", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("BENCH_BROKER", "redis://"),
    broker_transport="cqrs_celery.transport:Transport",
    broker_connection_retry_on_startup=True,
)
if os.environ.get("BENCH_STORE"):
    app.conf.cqrs_event_store = os.environ["BENCH_STORE"]
cqrs = CQRS(app)


def register_all() -> int:
    """Register the subscriptions, as a worker does when it starts; returns their number."""
    runtime = cqrs.runtime
    assert runtime.subscriptions is not None
    found = [one for one in definitions.all() if one.subscription]
    for definition in found:
        runtime.subscriptions.register(subscriber_of(definition, runtime))
    return len(found)


def main() -> None:
    """Save an event for each line that is read, and put into it when that began."""
    cqrs.store.find_command("none")
    print("ready", flush=True)
    for line in sys.stdin:
        item = Item(f"{os.getpid()}-{line.strip()}")
        with cqrs.session() as session:
            item.record(Checked(count=1, note="saved", sent_at=time.monotonic()))
            session.add(item)


if __name__ == "__main__":
    main()
