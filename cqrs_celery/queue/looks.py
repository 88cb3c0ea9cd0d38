"""The results of inspecting the queues, as frozen values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec


class Delayed(NamedTuple):
    """A message, or a whole sequence, that waits for its time.

    Attributes:
        id: the message's id; None for a sequence, whose first message is shown.
        queue: its queue.
        sequence: its sequence; "" for none.
        priority: its priority step.
        due_in_ms: milliseconds until it is due; negative if it is due and no consumer has taken
            from the queue since.
        payload: the message, or its head if several queues share a body.
        body: the shared body; empty if there is none.
    """

    id: int | None
    queue: str
    sequence: str
    priority: int
    due_in_ms: int
    payload: bytes
    body: bytes


class About(NamedTuple):
    """What a consumer has said about itself; a value that it has not given is None.

    Attributes:
        worker: the node name of its Celery worker.
        host: the machine it runs on.
        pid: its process id there.
        slots: how many deliveries it runs at once.
        batches: the queues of which one delivery holds many messages, each with the most it holds.
        pauses: whether it takes nothing from a paused queue; consumers of older releases do not say
            so.
    """

    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    slots: int | None = None
    batches: Mapping[str, int] = MappingProxyType({})
    pauses: bool = False


class Holding(NamedTuple):
    """A consumer: its queues, its lease, and what it holds of each queue.

    Attributes:
        consumer: its name.
        lease_ms: milliseconds until its lease ends; negative if the lease has ended and nobody has
            recovered its messages.
        queues: the queues that it consumes.
        messages: how many messages it holds.
        in_sequences: how many of `messages` are in a sequence.
        running: how many of `messages` it is running; see `cqrs_celery.queue.running`. The others
            are prefetched.
        oldest_running: the lowest id among the messages that it is running.
        oldest_prefetched: the lowest id among the messages that it has prefetched.
        oldest_behind: the lowest id among the messages that wait behind its sequences.
        about: what it has said about itself.
        sequences: how many sequences it holds.
    """

    consumer: str
    lease_ms: int
    queues: frozenset[str]
    messages: Counter[str]
    in_sequences: Counter[str]
    running: Counter[str]
    oldest_running: Mapping[str, int]
    oldest_prefetched: Mapping[str, int]
    oldest_behind: Mapping[str, int]
    about: About
    sequences: Mapping[str, int] = MappingProxyType({})

    @property
    def is_live(self) -> bool:
        """Whether its lease is still valid."""
        return self.lease_ms > 0

    def consumes(self, queue: str) -> bool:
        """Return whether it takes from a queue and its lease is still valid."""
        return self.is_live and queue in self.queues


class QueueLook(NamedTuple):
    """The numbers of a queue's messages, by what they wait for.

    Each message counts in one of them. A ready sequence counts as 1 in `ready`, for its first
    message, since one worker can take it; the messages behind it count in `waiting`. `in_flight` is
    the sum of `prefetched` and `running`.

    Attributes:
        queue: its name.
        ready: what a free worker could take now.
        waiting: messages behind another message of their sequence, which is ready or in flight.
        retrying: messages of sequences whose first message waits for its time.
        blocked: messages behind a dead letter of their sequence.
        delayed: messages that wait for their time.
        in_flight: messages that consumers hold.
        prefetched: messages that consumers hold and have not begun.
        running: messages that consumers are running; see `cqrs_celery.queue.running`.
        dead: dead letters.
    """

    queue: str
    ready: int
    waiting: int
    retrying: int
    blocked: int
    delayed: int
    in_flight: int
    prefetched: int
    running: int
    dead: int


class Subscribed(NamedTuple):
    """A registered subscriber: its name, the queue of its messages, and its topics, sorted."""

    name: str
    queue: str
    topics: tuple[str, ...]


def read_about(text: bytes) -> About:
    """Decode what a consumer has said about itself; an unreadable value counts as not given.

    Args:
        text: JSON, as the consumer has stored it.
    """
    try:
        told = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return About()
    if not isinstance(told, dict):
        return About()
    batches = told.get("batches")
    sizes = batches if isinstance(batches, dict) else {}
    return About(
        worker=_text(told.get("worker")),
        host=_text(told.get("host")),
        pid=_positive(told.get("pid")),
        slots=_positive(told.get("slots")),
        batches={queue: size for queue, n in sizes.items() if (size := _positive(n))},
        pauses=told.get("pauses") is True,
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _positive(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None
