"""Run workers of the mill, and see in Redis what they have done."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import DeadLetter
from tests.nodes import WorkerNode
from tests.waiting import wait_until

if TYPE_CHECKING:
    from tests.integration.conftest import WorkerFactory

FLOUR = "mill.flour"

POOLS = ("prefork", "solo", "threads", "gevent")


def start(
    factory: WorkerFactory, url: str, settings: dict[str, Any] | None = None, **options: Any
) -> WorkerNode:
    return factory(
        "from tests.mill import app",
        arguments=["--without-mingle", "--without-gossip"],
        env={"MILL_URL": url, "MILL_SETTINGS": json.dumps(settings or {})},
        **{"concurrency": 2, **options},
    )


def seen(data: Any, subscription: str, sack: str) -> list[int]:
    return [int(version) for version in data.lrange(f"seen:{subscription}:{sack}", 0, -1)]


def tried(data: Any, what: str) -> list[float]:
    """Return when a handler was tried that failed."""
    return [float(at) for at in data.lrange(f"tried:{what}", 0, -1)]


def letters(queue: ReliableQueue, name: str = FLOUR) -> list[DeadLetter]:
    return sorted(queue.letters.all(name))


def wait_for(data: Any, subscription: str, sack: str, versions: list[int]) -> None:
    wait_until(
        lambda: seen(data, subscription, sack) == versions,
        20,
        lambda: f"{versions} of {sack}, not {seen(data, subscription, sack)}",
    )
