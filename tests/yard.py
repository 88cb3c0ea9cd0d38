"""An application with a SQL event store: heaps that grow, and two subscriptions that see it.

A worker runs `tests.yard:app`, on the broker in YARD_BROKER and the store in YARD_STORE, with a
replica in YARD_READ_URL. What is handled is written to the file YARD_OUT, a line each, by one short
system call: it survives whatever is killed. The left subscription fails for the heaps that
`break_heap` names, until `mend_heaps`.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    RecordedEvent,
    Session,
    applies,
    command_handler,
    subscribes,
)
from cqrs_celery.transport import TRANSPORT

SUBSCRIPTIONS = ("yard.left", "yard.right")


class Grown(Event, name="yard.grown"):
    by: int


class Heap(Aggregate, name="YardHeap"):
    size: int = 0

    def grow(self, by: int) -> None:
        self.record(Grown(by=by))

    @applies(Grown)
    def _grown(self, event: Grown) -> None:
        self.size += event.by


class GrowHeap(Command, name="yard.grow_heap", aggregate=Heap, key="id"):
    id: str
    by: int = 1


@command_handler(GrowHeap)
def grow_heap(command: GrowHeap, session: Session) -> int:
    heap = session.find(Heap, command.id) or Heap(command.id)
    session.add(heap)
    heap.grow(command.by)
    return heap.size


class Broken(Exception):
    """A heap was broken on purpose."""


@subscribes(Grown, subscription="yard.left")
def left(event: Grown, recorded: RecordedEvent[Grown]) -> None:
    if _broken(Path(os.environ["YARD_OUT"]), recorded.aggregate_id).exists():
        raise Broken(recorded.aggregate_id)
    write_down("yard.left", recorded)


@subscribes(Grown, subscription="yard.right")
def right(event: Grown, recorded: RecordedEvent[Grown]) -> None:
    write_down("yard.right", recorded)


def write_down(subscription: str, recorded: RecordedEvent[Any]) -> None:
    line = f"{subscription} {recorded.aggregate_id} {recorded.version} {recorded.event_id}\n"
    with Path(os.environ["YARD_OUT"]).open("ab", buffering=0) as out:
        out.write(line.encode())


def _broken(out: Path, heap: str) -> Path:
    return out.with_name(f"{out.name}.broken.{heap}")


def break_heap(out: Path, heap: str) -> None:
    """Let the left subscription fail for a heap."""
    _broken(out, heap).touch()


def mend_heaps(out: Path) -> None:
    """Let no heap fail any more."""
    for path in out.parent.glob(_broken(out, "*").name):
        path.unlink()


class Handled(NamedTuple):
    """A line of what was handled."""

    subscription: str
    heap: str
    version: int
    event_id: str


def handled(out: Path) -> list[Handled]:
    """Return what was handled, in order."""
    if not out.exists():
        return []
    lines = [line.split() for line in out.read_text().splitlines()]
    return [Handled(one, heap, int(version), event_id) for one, heap, version, event_id in lines]


def check(out: Path, event_ids: list[str], *, is_once: bool = True) -> None:
    """Check that each subscription handled each event, in each heap's order; and once."""
    lines = handled(out)
    for subscription in SUBSCRIPTIONS:
        seen = Counter(line.event_id for line in lines if line.subscription == subscription)
        assert set(seen) == set(event_ids)
        if is_once:
            assert [event_id for event_id, count in seen.items() if count > 1] == []
        first: dict[str, list[int]] = {}
        for line in lines:
            if line.subscription == subscription and line.version not in first.get(line.heap, []):
                first.setdefault(line.heap, []).append(line.version)
        for versions in first.values():
            assert versions == sorted(versions)


def _options(broker: str, *, is_reliable: bool) -> dict[str, Any]:
    if broker.startswith(("amqp:", "pyamqp:")):
        return {"confirm_publish": os.environ.get("YARD_CONFIRM") != "0"}
    return {"lease_s": 2} if is_reliable else {}


def make_app(broker: str, store: str) -> Celery:
    """Return the application, and its CQRS as `app.cqrs`."""
    made = Celery("yard", broker=broker, set_as_current=False)
    if broker.startswith("redis:") and os.environ.get("YARD_STOCK") != "1":
        made.conf.broker_transport = TRANSPORT
    made.conf.update(
        cqrs_event_store=store,
        cqrs_event_store_read_url=os.environ.get("YARD_READ_URL") or None,
        broker_transport_options=_options(broker, is_reliable=bool(made.conf.broker_transport)),
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
    )
    CQRS(made)
    return made


if "YARD_STORE" in os.environ:
    app = make_app(os.environ["YARD_BROKER"], os.environ["YARD_STORE"])
