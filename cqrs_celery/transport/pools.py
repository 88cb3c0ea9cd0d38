"""Let a pool of threads forget what it has not started when its worker's connection is lost.

What was not started goes back to the queue then. Celery tells its pool to forget it (`flush`), and
its prefork pool does; its pool of threads, which keeps such tasks in the executor's own line, does
nothing, and would run them beside whoever gets them next.
"""

from __future__ import annotations

import queue
import sys
from typing import Any


def flush_threads() -> None:
    """Teach Celery's pool of threads to forget; nothing happens where none is in use."""
    module = sys.modules.get("celery.concurrency.thread")
    # A version of Celery that has learned it keeps its own.
    if module is not None and "flush" not in vars(module.TaskPool):
        module.TaskPool.flush = _flush


def _flush(pool: Any) -> None:
    # As `ThreadPoolExecutor.shutdown(cancel_futures=True)` does it, without the end.
    line = pool.executor._work_queue
    while True:
        try:
            item = line.get_nowait()
        except queue.Empty:
            return
        if item is not None:
            item.future.cancel()
