"""A call in the background: nobody waits for it, and no request is lost or leads to two calls."""

from __future__ import annotations

import os
import threading
import time

import pytest

from cqrs_celery.backends.redis.background import BackgroundCall
from tests.waiting import wait_until


class Work:
    """A function that waits at a gate, and counts its calls."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = 0
        self.done = 0
        self.error: Exception | None = None

    def __call__(self) -> None:
        self.begun += 1
        assert self.gate.wait(30)
        self.done += 1
        if self.error is not None:
            raise self.error


def wait_for(work: Work, done: int) -> None:
    wait_until(lambda: work.done == done, 10, lambda: f"{done} calls; there are {work.done}")


def test_a_request_is_answered_by_a_call_for_which_nobody_waits() -> None:
    # given a function that hangs
    work = Work()
    work.gate.clear()
    call = BackgroundCall(work, name="work")
    # when it is asked for
    began = time.monotonic()
    call.request()
    assert time.monotonic() - began < 1
    # then the call is on its way, and ends by itself
    wait_until(lambda: work.begun == 1)
    work.gate.set()
    wait_for(work, 1)


def test_requests_during_a_call_are_answered_by_one_more() -> None:
    work = Work()
    work.gate.clear()
    call = BackgroundCall(work, name="work")
    call.request()
    wait_until(lambda: work.begun == 1)
    for _ in range(100):
        call.request()
    work.gate.set()
    wait_for(work, 2)
    call.request()
    wait_for(work, 3)


def test_after_a_failure_requests_are_dropped_for_a_while() -> None:
    # given a call that has failed
    work = Work()
    work.error = OSError("away")
    call = BackgroundCall(work, name="work", rest_s=0.5)
    call.request()
    wait_for(work, 1)
    failed_at = time.monotonic()
    # when it is asked for again and again, until one more call is made
    work.error = None

    def is_called() -> bool:
        call.request()
        return work.done > 1

    wait_until(is_called)
    # then that was not before the while was over
    assert time.monotonic() - failed_at > 0.4


def test_a_thread_that_is_not_needed_any_more_ends_and_the_next_request_starts_another() -> None:
    work = Work()
    call = BackgroundCall(work, name="short-lived-work", idle_s=0.05)

    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name == "short-lived-work"]

    for done in (1, 2):
        call.request()
        wait_for(work, done)
        wait_until(lambda: not threads(), message="the thread to end")


def test_requests_from_many_threads_are_never_lost() -> None:
    # given a thread that ends as soon as it can, and a value that every request wants to be seen
    value, seen = [0], [0]
    call = BackgroundCall(lambda: seen.__setitem__(0, value[0]), name="work", idle_s=0)
    for n in range(1, 300):
        value[0] = n
        asking = [threading.Thread(target=call.request) for _ in range(3)]
        for one in asking:
            one.start()
        for one in asking:
            one.join()
        wait_until(lambda: seen[0] == value[0], 10)


def test_a_thread_that_can_not_be_started_fails_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    call = BackgroundCall(work, name="work", rest_s=0)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        call.request()
    # and the next one, when there are threads again, is answered
    call.request()
    wait_for(work, 1)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_process_that_was_forked_has_a_thread_of_its_own() -> None:
    # given a call that is under way as the process forks
    work = Work()
    work.gate.clear()
    call = BackgroundCall(work, name="work")
    call.request()
    wait_until(lambda: work.begun == 1)
    pid = os.fork()
    if pid == 0:
        # then the child's request is answered by the child
        work.gate.set()
        work.done = 0
        call.request()
        deadline = time.monotonic() + 10
        while not work.done and time.monotonic() < deadline:
            time.sleep(0.01)
        os._exit(0 if work.done else 1)
    work.gate.set()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
