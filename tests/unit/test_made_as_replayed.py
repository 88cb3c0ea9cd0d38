"""What events make is the same in the cache, in a snapshot and in a replay."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from cqrs_celery import CQRS, Aggregate, Event, EventData, applies, upcaster
from cqrs_celery.testing.given_when_then import given
from cqrs_celery.testing.scenario import in_memory


class MadeCounted(Event, name="made.counted"):
    number: int = 0


class MadeHalved(Event, name="made.halved"):
    number: int = 0


class MadeWhole(Event, name="made.whole"):
    """An event that an upcaster makes two of, while old code still records it."""

    number: int = 0


@upcaster("made.whole", 1, into=(MadeHalved,))
def halve(data: dict[str, Any]) -> list[EventData]:
    return [EventData("made.halved", 1, {"number": data["number"] // 2})] * 2


class Seen(Aggregate, name="MadeSeen", snapshot_every=1):
    seen: list[str] = []  # noqa: RUF012

    def count(self, number: int) -> None:
        self.record(MadeCounted(number=number))

    @applies(MadeCounted)
    def _counted(self, event: MadeCounted) -> None:
        self.seen.append(f"{event.number} at {self.version}, {len(self.pending_events)} pending")

    @applies(MadeWhole)
    def _whole(self, event: MadeWhole) -> None:
        self.seen.append(f"whole {event.number} at {self.version}")

    @applies(MadeHalved)
    def _halved(self, event: MadeHalved) -> None:
        self.seen.append(f"half {event.number} at {self.version}")


@pytest.fixture
def cqrs() -> Iterator[CQRS]:
    with in_memory("made", cqrs_cache="memory") as cqrs:
        yield cqrs


def found_by_every_way(cqrs: CQRS) -> list[list[str]]:
    repository = cqrs.runtime.bus.repository
    ways = (
        repository.get(Seen, "1"),
        repository.rebuild(Seen, "1"),
        repository.rebuild(Seen, "1", from_events_alone=True),
    )
    return [one.seen for one in ways if one is not None]


def commit(cqrs: CQRS, *events: Event) -> list[str]:
    with cqrs.session() as session:
        seen = session.find(Seen, "1") or Seen("1")
        session.add(seen)
        for event in events:
            seen.record(event)
        return seen.seen


def test_the_version_that_an_applies_method_sees_is_that_before_its_event(cqrs: CQRS) -> None:
    expected = [f"{n} at {n}, 0 pending" for n in range(5)]
    # when
    recorded = commit(cqrs, *(MadeCounted(number=n) for n in range(3)))
    # then
    assert recorded == expected[:3]
    assert found_by_every_way(cqrs) == [expected[:3]] * 3
    # and from a snapshot on
    assert commit(cqrs, MadeCounted(number=3), MadeCounted(number=4)) == expected
    assert found_by_every_way(cqrs) == [expected] * 3
    history = [MadeCounted(number=n) for n in range(4)]
    outcome = given(Seen, "1", *history).when(Seen.count, 4).then(MadeCounted(number=4))
    assert outcome.aggregate.seen == expected


def test_what_an_upcaster_makes_of_a_new_event_is_what_is_cached_and_kept(
    cqrs: CQRS, caplog: pytest.LogCaptureFixture
) -> None:
    # given
    caplog.set_level(logging.WARNING)
    expected = ["half 3 at 0", "half 3 at 1", "half 4 at 1", "half 4 at 2"]
    # when
    commit(cqrs, MadeWhole(number=6))
    # then
    assert found_by_every_way(cqrs) == [expected[:2]] * 3
    # and once more
    commit(cqrs, MadeWhole(number=8))
    assert found_by_every_way(cqrs) == [expected] * 3
    assert caplog.messages == []
