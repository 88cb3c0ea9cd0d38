"""A fork waits until no other thread is inside SQLite, and lets none in meanwhile."""

from __future__ import annotations

import gc
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator

import pytest

from cqrs_celery.backends.sqlite import forking
from cqrs_celery.backends.sqlite.forking import ForkGate, ForkSafeConnection

Start = Callable[[Callable[[], object]], threading.Thread]


@pytest.fixture
def gate() -> ForkGate:
    return ForkGate(wait_s=10)


@pytest.fixture
def start() -> Iterator[Start]:
    started = []

    def start_it(work: Callable[[], object]) -> threading.Thread:
        started.append(threading.Thread(target=work, daemon=True))
        started[-1].start()
        return started[-1]

    yield start_it
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_a_fork_waits_until_the_others_have_left_and_those_who_come_wait_for_it(
    gate: ForkGate, start: Start
) -> None:
    is_inside, may_leave, said = threading.Event(), threading.Event(), []
    has_forked, may_go_on = threading.Event(), threading.Event()

    def be_inside() -> None:
        with gate:
            is_inside.set()
            may_leave.wait(10)
            # from within it is entered again, also where a fork waits
            with gate:
                said.append("inside")

    def fork() -> None:
        gate.before_fork()
        said.append("forked")
        has_forked.set()
        may_go_on.wait(10)
        gate.after_fork_in_parent()

    def come_later() -> None:
        with gate:
            said.append("later")

    # given a thread inside, and one that forks
    start(be_inside)
    assert is_inside.wait(10)
    start(fork)
    assert not has_forked.wait(0.1)
    # when the thread has left
    may_leave.set()
    assert has_forked.wait(10)
    # then it forks, and nobody comes in until that is done
    later = start(come_later)
    later.join(0.1)
    assert said == ["inside", "forked"]
    may_go_on.set()
    later.join(10)
    assert said == ["inside", "forked", "later"]


def test_a_thread_inside_may_fork(gate: ForkGate) -> None:
    with gate:
        gate.before_fork()
        # and use SQLite between here and there
        with gate:
            pass
        gate.after_fork_in_parent()


def test_a_child_counts_none_of_its_parents_threads(gate: ForkGate, start: Start) -> None:
    is_inside, may_leave = threading.Event(), threading.Event()

    def be_inside() -> None:
        with gate:
            is_inside.set()
            may_leave.wait(10)

    # given what a child finds that was forked while another thread was inside
    start(be_inside)
    assert is_inside.wait(10)
    with gate:
        gate.after_fork_in_child()
    # then it can be entered, and fork by itself
    with gate:
        pass
    gate.before_fork()
    gate.after_fork_in_parent()
    may_leave.set()


def test_what_is_collected_in_a_child_before_it_is_told_of_the_fork_is_closed(
    gate: ForkGate,
) -> None:
    # given a child as it is before its own steps after the fork
    gate.before_fork()
    # then the gate can be entered by the thread that forked, which is the only one there
    with gate:
        pass
    gate.after_fork_in_child()
    with gate:
        pass


def test_a_fork_does_not_wait_for_ever_and_says_so(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    gate = ForkGate(wait_s=0.05)
    is_inside, may_leave = threading.Event(), threading.Event()

    def be_inside() -> None:
        with gate:
            is_inside.set()
            may_leave.wait(10)

    start(be_inside)
    assert is_inside.wait(10)
    with caplog.at_level(logging.WARNING):
        gate.before_fork()
    assert "another thread was using SQLite" in caplog.text
    gate.after_fork_in_parent()
    may_leave.set()


def test_a_connection_that_nobody_closed_is_closed_while_nobody_forks(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = ForkGate(wait_s=10)
    monkeypatch.setattr(forking, "between_forks", gate)
    has_dropped = threading.Event()
    connections = [sqlite3.connect(":memory:", check_same_thread=False, factory=ForkSafeConnection)]

    def drop() -> None:
        connections.clear()
        gc.collect()
        has_dropped.set()

    # given a fork
    gate.before_fork()
    # when a connection is dropped by another thread
    start(drop)
    # then it is closed after the fork
    assert not has_dropped.wait(0.1)
    gate.after_fork_in_parent()
    assert has_dropped.wait(10)
