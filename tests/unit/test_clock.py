"""The clock by which leases are measured counts the time for which the machine was suspended."""

from __future__ import annotations

import time

import pytest

from cqrs_celery import clock


def test_the_clock_goes_on_while_the_machine_is_suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a system whose clock that counts it is ahead of the monotonic one
    asked: list[int] = []

    def clock_gettime(which: int) -> float:
        asked.append(which)
        return time.monotonic() + 7_200

    monkeypatch.setattr(clock, "_CLOCK", 7)
    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    # then that one is asked
    assert clock.elapsed_s() > time.monotonic() + 7_000
    assert asked == [7]


def test_without_such_a_clock_the_monotonic_one_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_CLOCK", None)
    before = time.monotonic()
    assert before <= clock.elapsed_s() <= time.monotonic()
