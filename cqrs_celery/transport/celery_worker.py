"""Teach Celery's worker, where one runs in this process, what the transport needs it to do.

- A pool of threads forgets what it has not started when the connection is lost. What was not
  started goes back to the queue then; Celery tells its pool to forget it (`flush`), and its prefork
  pool does, but its pool of threads does nothing, and would run it beside whoever gets it next.
- A task that ends with a retry is settled with doubt: its retry may have taken its message's place,
  and then what stands behind it in its sequence is no longer this worker's.
"""

from __future__ import annotations

import queue
import sys
from functools import wraps
from typing import Any


def teach_celery() -> None:
    """Teach what is imported; nothing happens where no worker runs, and the second time."""
    threads = sys.modules.get("celery.concurrency.thread")
    # A version of Celery that has learned it keeps its own.
    if threads is not None and "flush" not in vars(threads.TaskPool):
        threads.TaskPool.flush = _forget_unstarted
    requests = sys.modules.get("celery.worker.request")
    if requests is not None and not hasattr(requests.Request.on_retry, "__wrapped__"):
        requests.Request.on_retry = _doubting(requests.Request.on_retry)


def _forget_unstarted(pool: Any) -> None:
    # As `ThreadPoolExecutor.shutdown(cancel_futures=True)` does it, without the end.
    line = pool.executor._work_queue
    while True:
        try:
            item = line.get_nowait()
        except queue.Empty:
            return
        if item is not None:
            item.future.cancel()


def _doubting(original: Any) -> Any:
    @wraps(original)
    def on_retry(request: Any, exc_info: Any) -> Any:
        settle = getattr(request.message.channel, "ack_retried", None)
        if settle is not None and request.task.acks_late and not request.acknowledged:
            settle(request.message.delivery_tag)
            request.acknowledged = True
        return original(request, exc_info)

    return on_retry
