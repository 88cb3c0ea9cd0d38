"""A waker wakes from any thread, and writes into no file that gets its number when it is closed."""

from __future__ import annotations

import os
import select
import threading
from pathlib import Path

import pytest

from cqrs_celery.transport.waker import Waker


def is_readable(waker: Waker) -> bool:
    return bool(select.select([waker.reading_end], [], [], 0)[0])


def test_a_ring_is_heard_once_however_often_it_rings() -> None:
    waker = Waker()
    assert not is_readable(waker)
    for _ in range(100_000):
        waker.ring()
    assert is_readable(waker)
    waker.hear()
    assert not is_readable(waker)
    # and the next one is heard again
    waker.ring()
    assert is_readable(waker)
    waker.close()


def test_after_its_end_it_rings_and_hears_nothing() -> None:
    waker = Waker()
    end = waker.reading_end
    waker.close()
    waker.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(end)
    waker.ring()
    waker.hear()


def test_a_ring_that_is_under_way_when_it_is_closed_writes_into_no_other_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # given a thread that is about to write
    waker = Waker()
    ends = waker._ends
    began, may_write = threading.Event(), threading.Event()
    write = os.write

    def slow(end: int, data: bytes) -> int:
        began.set()
        assert may_write.wait(30)
        return write(end, data)

    monkeypatch.setattr(os, "write", slow)
    ringing = threading.Thread(target=waker.ring)
    ringing.start()
    assert began.wait(30)
    # when the waker is closed, and other files are opened
    waker.close()
    paths = [tmp_path / f"ledger-{n}" for n in range(20)]
    files = [path.open("wb") for path in paths]
    assert not {file.fileno() for file in files} & set(ends)
    may_write.set()
    ringing.join(30)
    # then none of them has a byte of it, and the pipe is closed
    for file in files:
        file.close()
    assert not any(path.stat().st_size for path in paths)
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


def test_a_ring_from_within_a_ring_or_a_hearing_does_not_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a signal handler that settles something, while its thread rings, and while it hears
    waker = Waker()
    write, read = os.write, os.read

    def interrupted_write(end: int, data: bytes) -> int:
        waker.has_rung = False
        waker.ring()
        return write(end, data)

    def interrupted_read(end: int, count: int) -> bytes:
        waker.ring()
        return read(end, count)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted_write)
        waker.ring()
    assert is_readable(waker)
    with monkeypatch.context() as patch:
        patch.setattr(os, "read", interrupted_read)
        waker.hear()
    # then neither waits for ever, and it still rings
    waker.ring()
    assert is_readable(waker)
    waker.close()


def test_threads_that_ring_while_wakers_are_closed_leave_files_alone(tmp_path: Path) -> None:
    wakers = [Waker() for _ in range(200)]
    stop = threading.Event()

    def ring() -> None:
        while not stop.is_set():
            for waker in wakers:
                waker.has_rung = False
                waker.ring()

    threads = [threading.Thread(target=ring) for _ in range(2)]
    for thread in threads:
        thread.start()
    ledger = tmp_path / "ledger"
    for waker in wakers:
        waker.close()
        with ledger.open("ab"), ledger.open("ab"):
            pass
    stop.set()
    for thread in threads:
        thread.join(30)
    assert ledger.stat().st_size == 0
