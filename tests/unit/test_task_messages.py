"""What a worker takes for the fault of a message, and what not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from cqrs_celery.transport.celery.task_messages import is_elsewhere


@pytest.fixture
def interrupt() -> Iterator[int]:
    """Give a signal whose handler raises an error."""

    def refuse(number: int, frame: FrameType | None) -> None:
        raise NotImplementedError("cannot end a task")

    before = signal.signal(signal.SIGUSR2, refuse)
    yield signal.SIGUSR2
    signal.signal(signal.SIGUSR2, before)


def raised_by(number: int) -> Exception:
    """Return what comes out of a function in which a signal arrives."""
    try:
        os.kill(os.getpid(), number)
        for _ in range(1_000_000):
            pass
    except NotImplementedError as error:
        return error
    raise AssertionError("no signal came")


def test_what_a_signals_handler_raises_is_not_the_fault_of_the_message(interrupt: int) -> None:
    assert is_elsewhere(raised_by(interrupt), ())


def test_the_same_error_of_a_messages_own_is_its_fault() -> None:
    assert not is_elsewhere(NotImplementedError("cannot end a task"), ())
    with pytest.raises(NotImplementedError) as found:
        raise NotImplementedError("cannot end a task")
    assert not is_elsewhere(found.value, ())
