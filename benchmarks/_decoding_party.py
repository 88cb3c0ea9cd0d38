"""One process of `benchmarks.decoding`: it makes its events, then decodes them as it is told to.

    python -O -m benchmarks._decoding_party ours|eventsourcing

It says `ready`, and for each line `<events> <way>` the seconds of its own processor time that so
many took.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

#: Different events; they come again and again.
DIFFERENT = 1_000

#: What the JSON of each is long.
BYTES = 300

Way = Callable[[int], None]


def fields(number: int) -> dict[str, Any]:
    """Return the fields of an event, but its remark."""
    return {
        "name": f"bolt M{number:04}", "place": f"hall {number % 10}", "count": 10_000 + number,
        "price": 1.25, "tags": ["steel", "zinc"],
    }  # fmt: skip


def filled(encode: Callable[[str], bytes]) -> bytes:
    """Return what is encoded with a remark that makes it as long as it shall be."""
    made = encode("x" * (BYTES - len(encode(""))))
    if len(made) != BYTES:
        raise ValueError(f"found {len(made)} bytes, expected {BYTES}")
    return made


def ours() -> dict[str, Way]:
    from datetime import UTC, datetime

    import msgspec

    from cqrs_celery import Event, upcaster
    from cqrs_celery.messages.serializer import Serializer
    from cqrs_celery.store.decoding import recorded_events
    from cqrs_celery.store.events import NewEvent, StoredEvent
    from cqrs_celery.store.stream import StreamName

    class Measured(Event, name="bench.measured", version=2):
        name: str
        place: str
        count: int
        price: float
        tags: list[str]
        remark: str

    @upcaster("bench.measured", 1)
    def measured_v1(data: dict[str, Any]) -> dict[str, Any]:
        data["remark"] = data.pop("remark")
        return data

    serializer = Serializer("bench")

    def encoded(number: int) -> bytes:
        return filled(
            lambda remark: serializer.encode(Measured(**fields(number), remark=remark)).data
        )

    datas = [encoded(number) for number in range(DIFFERENT)]
    stream, at = StreamName("bench", "Item", "42"), datetime.now(UTC)

    def stored(version: int) -> list[StoredEvent]:
        return [
            StoredEvent(
                stream, n, n, NewEvent(f"id-{n}", "bench.measured", version, at, data)
            )
            for n, data in enumerate(datas, 1)
        ]  # fmt: skip

    new, old = stored(2), stored(1)

    def bare(count: int) -> None:
        decode = msgspec.json.Decoder(Measured).decode
        for data in itertools.islice(itertools.cycle(datas), count):
            decode(data)

    def by_serializer(count: int) -> None:
        decode = serializer.decode
        for data in itertools.islice(itertools.cycle(datas), count):
            decode("event", "bench.measured", 2, data)

    def recorded(events: list[StoredEvent]) -> Way:
        def read(count: int) -> None:
            history = itertools.islice(itertools.cycle(events), count)
            for _ in recorded_events(history, serializer):
                pass

        return read

    return {
        "bare msgspec": bare,
        "Serializer.decode": by_serializer,
        "recorded event": recorded(new),
        "upcast": recorded(old),
    }


def theirs() -> dict[str, Way]:
    from eventsourcing.domain import Aggregate, event
    from eventsourcing.persistence import (
        DatetimeAsISO,
        DecimalAsStr,
        JSONTranscoder,
        Mapper,
        StoredEvent,
        UUIDAsHex,
    )

    class Item(Aggregate):
        @event("Measured")
        def measure(
            self, name: str, place: str, count: int, price: float, tags: list[str], remark: str
        ) -> None:
            pass

    # As an application of theirs has it.
    transcoder = JSONTranscoder()
    for transcoding in (UUIDAsHex(), DecimalAsStr(), DatetimeAsISO()):
        transcoder.register(transcoding)
    mapper: Any = Mapper(transcoder)
    item = Item()

    def stored(number: int) -> StoredEvent:
        found: list[Any] = []

        def encode(remark: str) -> bytes:
            item.measure(**fields(number), remark=remark)
            found[:] = [mapper.to_stored_event(item.collect_events()[-1])]
            return bytes(found[0].state)

        filled(encode)
        return found[0]

    events = [stored(number) for number in range(DIFFERENT)]

    def by_transcoder(count: int) -> None:
        decode, datas = transcoder.decode, [one.state for one in events]
        for data in itertools.islice(itertools.cycle(datas), count):
            decode(data)

    def by_mapper(count: int) -> None:
        read = mapper.to_domain_event
        for one in itertools.islice(itertools.cycle(events), count):
            read(one)

    return {"eventsourcing, transcoder": by_transcoder, "eventsourcing, mapper": by_mapper}


def main() -> None:
    """Decode as it is told to."""
    ways = (ours if sys.argv[1] == "ours" else theirs)()
    print("ready", flush=True)
    for line in sys.stdin:
        count, _, way = line.strip().partition(" ")
        began = time.process_time()
        ways[way](int(count))
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main()
