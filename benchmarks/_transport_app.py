"""The application that `benchmarks.transport` publishes to and starts workers of.

BENCH_BROKER is the broker's URL, BENCH_OUT the folder of what tasks write. Each run of a task
appends to a file there, which is one short system call, from any process or thread: the file's
size is the proof of how many ran, and how often.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

import celery
import redis.connection

import cqrs_celery.transport  # noqa: F401 - registers reliable-redis://

_STAMP = struct.Struct("dd")


def make_app(url: str, *, prefetch: int = 4, **settings: Any) -> celery.Celery:
    """Return an application on a broker; late acks, no results, one queue."""
    app = celery.Celery("bench", broker=url, set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=prefetch,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        task_default_queue="celery",
        **settings,
    )
    app.task(_noop, name="noop")
    app.task(_stamp, name="stamp")
    return app


def _append(name: str, data: bytes) -> None:
    # Opened anew in each process: a descriptor is not worth more than its fork.
    key = os.getpid(), name
    file = _files.get(key)
    if file is None:
        path = Path(os.environ["BENCH_OUT"]) / name
        file = _files[key] = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    os.write(file, data)


_files: dict[tuple[int, str], int] = {}


def _noop() -> None:
    _append("ran", b".")


def _stamp(sent_at: float) -> None:
    """Write down when the message was sent, and when its task started."""
    _append("stamps", _STAMP.pack(sent_at, time.time()))


def read_stamps(folder: Path) -> list[tuple[float, float]]:
    """Return what `stamp` has written: sent at, started at."""
    path = folder / "stamps"
    return list(_STAMP.iter_unpack(path.read_bytes())) if path.exists() else []


def read_ran(folder: Path) -> int:
    """Return how many no-op tasks have run."""
    path = folder / "ran"
    return path.stat().st_size if path.exists() else 0


def count_round_trips() -> None:
    """Write down each request that is sent to Redis; a pipeline is one."""
    of_redis = redis.connection.AbstractConnection.send_packed_command

    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        _append("trips", struct.pack("d", time.time()))
        return of_redis(self, *args, **kwargs)

    redis.connection.AbstractConnection.send_packed_command = send  # type: ignore[method-assign]


def read_trips(folder: Path, since: float, until: float) -> int:
    """Return how many requests were sent in that time."""
    path = folder / "trips"
    times = struct.iter_unpack("d", path.read_bytes()) if path.exists() else ()
    return sum(since <= at <= until for (at,) in times)


if "BENCH_BROKER" in os.environ:
    app = make_app(os.environ["BENCH_BROKER"], prefetch=int(os.environ.get("BENCH_PREFETCH", "4")))
    if os.environ.get("BENCH_COUNT"):
        count_round_trips()
