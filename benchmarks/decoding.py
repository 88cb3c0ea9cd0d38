"""What decoding stored events costs: of the current version, and through an upcaster.

    python -m benchmarks.decoding --rounds 5 --events 200000

Beside it stand bare msgspec, and the whole way from a store's value to what an aggregate is given.
Every way decodes the same 300 bytes; rounds alternate between them, and the best counts.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from cqrs_celery import Event
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.store import decoding
from cqrs_celery.store.events import NewEvent, StoredEvent
from cqrs_celery.store.stream import StreamName


class Measured(Event, name="bench.measured"):
    name: str
    place: str
    count: int
    price: float
    tags: list[str]
    remark: str


EVENT = Measured(
    name="bolt M8", place="hall 7", count=5, price=1.25, tags=["steel", "zinc"], remark="x" * 190
)
SERIALIZER = Serializer("bench")
ENCODED = SERIALIZER.encode(EVENT)
STORED = StoredEvent(
    StreamName("bench", "Item", "42"),
    1,
    1,
    NewEvent("id", *ENCODED[:2], datetime.now(UTC), ENCODED[2]),
)


def bare(count: int) -> None:
    decode = msgspec.json.Decoder(Measured).decode
    for _ in range(count):
        decode(ENCODED.data)


def serializer(count: int) -> None:
    decode, (name, version, data) = SERIALIZER.decode, ENCODED
    for _ in range(count):
        decode("event", name, version, data)


def recorded(count: int) -> None:
    for _ in decoding.recorded_events(itertools.repeat(STORED, count), SERIALIZER):
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=200_000)
    args = parser.parse_args()
    ways: dict[str, Callable[[int], None]] = {
        "bare msgspec": bare,
        "Serializer.decode": serializer,
        "recorded event": recorded,
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            # Of this process alone, whatever else the machine does.
            began = time.process_time()
            way(args.events)
            took[name].append(time.process_time() - began)
    print(f"{len(ENCODED.data)} bytes")
    for name, seconds in took.items():
        each = min(seconds) / args.events
        print(f"{name:<20} {each * 1e9:8.0f} ns  {1 / each:12,.0f} events/s")


if __name__ == "__main__":
    main()
