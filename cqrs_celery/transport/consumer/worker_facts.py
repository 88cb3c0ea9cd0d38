"""Describe the consuming worker to the queue, for recovery and for display.

A worker that died was running the oldest of its messages, as many as its pool has slots: only these
can have killed it.
"""

from __future__ import annotations

import os
import sys
import weakref
from typing import Any

from ..consumer import process_locks

#: The Celery worker of this process, while there is one.
_worker: weakref.ref[Any] | None = None


def watch_for_worker() -> None:
    """Remember the Celery worker that starts in this process, if one does."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.celeryd_after_setup.connect(_remember)


def _remember(instance: Any = None, **_: Any) -> None:
    global _worker
    _worker = weakref.ref(instance)
    # Before the pool forks its children: the lock is held as long as one of them runs a task.
    options = instance.app.conf.broker_transport_options or {}
    process_locks.hold(options.get("lock_folder"))


def is_worker() -> bool:
    """Return whether a Celery worker runs in this process."""
    return _worker is not None and _worker() is not None


def facts() -> dict[str, Any]:
    """Return the description of this process.

    Returns:
        `host` and `pid`; in a worker also `worker`, its node name, and `slots`, how many tasks its
        pool runs at once.
    """
    known: dict[str, Any] = {"host": os.uname().nodename, "pid": os.getpid()}
    worker = None if _worker is None else _worker()
    pool = getattr(worker, "pool", None)
    if worker is not None and pool is not None:
        known |= {"worker": str(worker.hostname), "slots": int(pool.num_processes)}
    return known
