"""Make `celery inspect` show the delayed tasks in Redis, and which queues are paused.

With other brokers a worker holds delayed tasks itself and lists its own; here they wait in the
queue. So a worker also lists the delayed tasks of the queues that it consumes; several workers may
list the same ones. A paused queue has the argument `x-paused` in `inspect active_queues`, which
Flower's page of a worker shows too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import wraps
from typing import Any

from ...queue.inspection import QueueInspector
from ...queue.stored import MOST_BYTES
from ...transport import envelope
from ..celery import patching

#: The most delayed tasks that a worker lists of one queue; of all queues together, it lists at most
#: `MOST_BYTES` of messages.
MOST = 1_000

#: The priority that Celery shows for a task that waits in a worker's timer.
_TIMER_PRIORITY = 6

#: The names in Celery that are changed here.
NEEDED = tuple(patching.attributes("celery.worker.control", "Panel", "data"))


def show_delayed() -> None:
    """Show them in this process's worker; without a worker, and the second time, do nothing.

    Raises:
        UnsupportedCelery: the installed Celery keeps its remote-control commands elsewhere.
    """
    control = sys.modules.get("celery.worker.control")
    if control is None:
        return
    patching.check(NEEDED)
    if not patching.mark(control.Panel, "scheduled"):
        return
    original = control.Panel.data["scheduled"]

    @wraps(original)
    def scheduled(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
        return [*original(state, **kwargs), *_delayed(state.consumer)]

    for name in ("scheduled", "dump_schedule"):
        control.Panel.data[name] = scheduled
    active_queues_before = control.Panel.data["active_queues"]

    @wraps(active_queues_before)
    def active_queues(state: Any, **kwargs: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = active_queues_before(state, **kwargs)
        paused = _paused(state.consumer)
        return [_with_pause(one, paused) for one in found]

    control.Panel.data["active_queues"] = active_queues


def _paused(consumer: Any) -> frozenset[str]:
    queue = getattr(getattr(consumer.task_consumer, "channel", None), "queue", None)
    return frozenset() if queue is None else frozenset(queue.paused())


def _with_pause(queue: dict[str, Any], paused: frozenset[str]) -> dict[str, Any]:
    if queue.get("name") not in paused:
        return queue
    return {**queue, "queue_arguments": {**(queue.get("queue_arguments") or {}), "x-paused": True}}


def _delayed(consumer: Any) -> Iterator[dict[str, Any]]:
    channel = consumer.task_consumer.channel
    queue = getattr(channel, "queue", None)
    if queue is None:
        return
    inspector, size = QueueInspector(queue), 0
    for name in channel.active_queues:
        for delayed in inspector.delayed(name, MOST):
            size += len(delayed.payload) + len(delayed.body)
            if size > MOST_BYTES:
                return
            entry = _entry(delayed.payload, delayed.body, hostname=consumer.hostname)
            if entry is not None:
                yield entry


def _entry(payload: bytes, body: bytes, *, hostname: str) -> dict[str, Any] | None:
    head, body = envelope.split(payload, body)
    try:
        message = envelope.read_json(head)
        headers, properties = message["headers"], message["properties"]
        args, kwargs = _arguments(body, headers)
        info = properties.get("delivery_info") or {}
        return {
            "eta": headers.get("eta") or headers.get(envelope.WAITED_HEADER),
            "priority": _TIMER_PRIORITY,
            "request": {
                "id": headers["id"],
                "name": headers["task"],
                "args": args,
                "kwargs": kwargs,
                "type": headers["task"],
                "hostname": hostname,
                "time_start": None,
                "acknowledged": False,
                "delivery_info": {
                    "exchange": info.get("exchange"),
                    "routing_key": info.get("routing_key"),
                    "priority": properties.get("priority"),
                    "redelivered": False,
                },
                "worker_pid": None,
            },
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _arguments(body: bytes, headers: dict[str, Any]) -> tuple[Any, Any]:
    try:
        args, kwargs, _ = json.loads(body)
    except (ValueError, TypeError):
        return headers.get("argsrepr"), headers.get("kwargsrepr")
    return args, kwargs
