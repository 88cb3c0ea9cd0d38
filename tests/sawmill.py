"""An application that has changed an event: what was one log that was sawn are planks and bark.

A worker runs `tests.sawmill:app`, on the broker in SAWMILL_BROKER and the store in SAWMILL_STORE.
What is handled is noted in a file in SAWMILL_FOLDER, by one short system call each time. There a
file `closed-<version>-<part>` holds a handler up, and `broken-<version>-<part>-<n>` lets it fail.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Event,
    EventData,
    RecordedEvent,
    Session,
    applies,
    subscribes,
    upcaster,
)
from cqrs_celery.transport import TRANSPORT


class PlankCut(Event, name="sawmill.plank_cut"):
    length: int


class BarkStripped(Event, name="sawmill.bark_stripped"):
    pass


@upcaster("sawmill.log_sawn", 1, into=(PlankCut, BarkStripped))
def log_sawn(data: dict[str, Any]) -> list[EventData]:
    first, second = data["planks"]
    return [
        EventData("sawmill.plank_cut", 1, {"length": first}),
        EventData("sawmill.bark_stripped", 1, {}),
        EventData("sawmill.plank_cut", 1, {"length": second}),
    ]


@upcaster("sawmill.saw_sharpened", 1, into=(PlankCut,))
def saw_sharpened(data: dict[str, Any]) -> list[EventData]:
    return []


class Stacked(Event, name="sawmill.stacked"):
    what: str
    version: int
    part: int


class Stack(Aggregate, name="Stack"):
    height: int = 0

    @applies(Stacked)
    def _stacked(self, event: Stacked) -> None:
        self.height += 1


@subscribes(PlankCut, BarkStripped, subscription="sawmill.stacks", retry_jitter=False)
def stack(event: Event, recorded: RecordedEvent[Event], session: Session) -> None:
    note("stacks", "began", recorded)
    stop_if_told(recorded)
    stack = session.find(Stack, recorded.aggregate_id) or Stack(recorded.aggregate_id)
    session.add(stack)
    what = "plank" if isinstance(event, PlankCut) else "bark"
    stack.record(Stacked(what=what, version=recorded.version, part=recorded.part))
    note("stacks", "done", recorded)


@subscribes(PlankCut, subscription="sawmill.planks")
def count(event: PlankCut, recorded: RecordedEvent[PlankCut]) -> None:
    note("planks", "done", recorded)


def note(subscription: str, what: str, recorded: RecordedEvent[Any]) -> None:
    line = f"{subscription} {what} {recorded.aggregate_id} {recorded.version} {recorded.part}\n"
    with (folder() / "notes").open("ab", buffering=0) as out:
        out.write(line.encode())


def stop_if_told(recorded: RecordedEvent[Any]) -> None:
    place = f"{recorded.version}-{recorded.part}"
    for broken in folder().glob(f"broken-{place}-*"):
        broken.unlink()
        raise ValueError("the saw is blunt")
    while (folder() / f"closed-{place}").exists():
        time.sleep(0.01)


def folder() -> Path:
    return Path(os.environ["SAWMILL_FOLDER"])


def make_app() -> Celery:
    """Return the application that the environment describes, and its CQRS as `app.cqrs`."""
    made = Celery("sawmill", broker=os.environ["SAWMILL_BROKER"], set_as_current=False)
    made.conf.update(
        broker_transport=TRANSPORT,
        cqrs_event_store=os.environ["SAWMILL_STORE"],
        broker_transport_options={"lease_s": 1},
        broker_connection_retry_on_startup=True,
        task_ignore_result=True,
    )
    CQRS(made)
    return made


if "SAWMILL_BROKER" in os.environ:
    app = make_app()
