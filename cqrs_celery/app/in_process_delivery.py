"""Deliver events committed to the store in memory to this process's subscriptions."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from ..dispatch.definitions import Definition, definitions
from ..dispatch.envelope import pack_event
from ..dispatch.handler import task_of
from ..dispatch.runtime import Runtime
from ..errors import SubscriptionFailed
from ..store.events import StoredEvent


class _Failure(NamedTuple):
    """An exception that a subscription's function raised, and the event it was handling."""

    subscription: str
    stored: StoredEvent
    error: Exception


class InProcessDelivery:
    """The delivery of one application's events to the subscriptions of this process.

    Args:
        runtime: the application's runtime.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._deliveries = threading.local()

    def deliver(self, events: Sequence[StoredEvent]) -> None:
        """Deliver events to this process's subscriptions, commit after commit.

        Events that a subscriber commits are delivered after the present ones, as through a queue.
        If one subscriber fails, the others still get the event.

        Raises:
            SubscriptionFailed: one or more subscribers failed. It is raised after all deliveries,
                with the first failure as its cause.
        """
        waiting: deque[StoredEvent] | None = getattr(self._deliveries, "waiting", None)
        if waiting is not None:
            waiting.extend(events)
            return
        waiting = self._deliveries.waiting = deque(events)
        failures: list[_Failure] = []
        try:
            while waiting:
                failures += self._deliver_one(waiting.popleft())
        finally:
            del self._deliveries.waiting
        if failures:
            position = events[-1].global_position
            raise _failed(failures, position=position) from failures[0].error

    def _deliver_one(self, stored: StoredEvent) -> list[_Failure]:
        failures = []
        for definition in self._subscribers_of(stored):
            task = task_of(self._runtime.app, definition)
            task_id = f"{stored.event.event_id}:{task.name}"
            try:
                # No retries: without a queue, a retry could not wait.
                task.apply(
                    (pack_event(stored),), task_id=task_id, retries=task.max_retries, throw=True
                )
            except Exception as error:  # noqa: BLE001
                failures.append(_Failure(task.name, stored, error))
        return failures

    def _subscribers_of(self, stored: StoredEvent) -> list[Definition]:
        event, serializer = stored.event, self._runtime.serializer
        found = serializer.decode_all("event", event.type, event.type_version, event.data)
        classes = dict.fromkeys(type(one) for one in found)
        return list(dict.fromkeys(d for cls in classes for d in definitions.subscribers_of(cls)))


def _failed(failures: Sequence[_Failure], *, position: int) -> SubscriptionFailed:
    name, stored, error = failures[0]
    return SubscriptionFailed(
        f"committed up to position {position}, but the subscription {name} failed at"
        f" {stored.event.type} of {stored.stream}, version {stored.version}:"
        f" {type(error).__name__}: {error}"
        + (f" (the first of {len(failures)} failures)" if len(failures) > 1 else "")
        + ". Don't repeat what was committed. Correct the subscription's function: in memory,"
        " nothing keeps the event for it.",
        subscription=name,
        stream=str(stored.stream),
        version=stored.version,
        position=position,
        failures=len(failures),
    )
