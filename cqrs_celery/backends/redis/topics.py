"""Publish to topics of the broker: in one step to every subscriber's queue, or to none.

A publisher that waits for space tries again repeatedly. Each attempt checks the capacity and
publishes in one script, so a queue never exceeds its capacity, however many publishers there are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import redis
from kombu.utils.functional import retry_over_time

from ...errors import PublishFailed, QueueFull
from ...queue.reliable_queue import ReliableQueue
from ...queue.values import FullQueue

#: Seconds between two attempts: the first and the longest pause. It doubles each time, shortened at
#: random so that many waiting publishers don't try at once.
FIRST_LOOK_S, LONGEST_LOOK_S = 0.005, 0.25

#: The keys of Celery's `task_publish_retry_policy` that Kombu's retries accept.
_POLICY = ("max_retries", "interval_start", "interval_step", "interval_max")


class Topics:
    """The topics of one virtual host, for publishing.

    Args:
        client: returns a redis client without retries of its own; called once per publish.
        prefix: the prefix of every key.
        dedup_ttl_ms: milliseconds for which a message's id is remembered.
        retry_policy: Celery's `task_publish_retry_policy`; None to try once.
        where: names the broker in errors, without credentials.
    """

    def __init__(
        self,
        client: Callable[[], redis.Redis],
        *,
        prefix: str,
        dedup_ttl_ms: int,
        retry_policy: Mapping[str, Any] | None,
        where: str,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._dedup_ttl_ms = dedup_ttl_ms
        policy = {"max_retries": 0} if retry_policy is None else retry_policy
        self._policy = {name: policy[name] for name in _POLICY if name in policy}
        self._where = where

    def publish(
        self,
        topic: str,
        body: str,
        *,
        message_id: str,
        root_id: str,
        parent_id: str,
        sequence: str,
        capacity: int,
        timeout_s: float,
    ) -> int | None:
        """Send a message to every subscriber of a topic, or to none; once per message id.

        Args:
            topic: the topic that the subscribers registered for.
            body: the message's body, stored once for all of them.
            message_id: the unique id, as written inside a JSON string; so are the next two.
            root_id: the id of the message that began the trace.
            parent_id: the id of the message that causes this one; "" for none.
            sequence: the sequence in which it stays in order; "" for none.
            capacity: how many messages may wait in each queue before it; 0 for any number.
            timeout_s: seconds to wait for space; 0 tries once.

        Returns:
            The number of queues that it was sent to; None if its id was published before.

        Raises:
            QueueFull: there was no space in time; nothing was published.
            PublishFailed: the broker does not answer, and the message may or may not be published;
                or the broker has no memory left.
        """

        def publish() -> int | FullQueue | None:
            return self._queue().publish_topic(
                topic, body, message_id=message_id, root_id=root_id, parent_id=parent_id,
                sequence=sequence, publish_id=message_id, capacity=capacity,
            )  # fmt: skip

        deadline, pause_s = time.monotonic() + timeout_s, FIRST_LOOK_S
        while True:
            found = self._reach(publish, topic, message_id)
            if not isinstance(found, FullQueue):
                return found
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise _queue_full(found, topic, message_id, capacity, timeout_s)
            time.sleep(min(left_s, pause_s * random.uniform(0.5, 1)))  # noqa: S311
            pause_s = min(pause_s * 2, LONGEST_LOOK_S)

    def _queue(self) -> ReliableQueue:
        return ReliableQueue(self._client(), prefix=self._prefix, dedup_ttl_ms=self._dedup_ttl_ms)

    def _reach(
        self, publish: Callable[[], int | FullQueue | None], topic: str, message_id: str
    ) -> int | FullQueue | None:
        try:
            answer: int | FullQueue | None = retry_over_time(
                publish, (redis.ConnectionError, redis.TimeoutError), **self._policy
            )
            return answer
        except redis.OutOfMemoryError as error:
            raise PublishFailed(
                f"{topic} [{message_id}] was not published: {self._where} has reached its maxmemory"
                f" ({error}). Give it more memory, or publish with a capacity.",
                message_id=message_id,
                repeat_with={"message_id": message_id},
            ) from error
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise PublishFailed(
                f"{topic} [{message_id}] was not published: {self._where} does not answer"
                f" ({' '.join(str(error).split())}), after {self._policy.get('max_retries', 0)}"
                " retries. Start it, or correct broker_url; then publish again with the same"
                " message_id.",
                message_id=message_id,
                repeat_with={"message_id": message_id},
            ) from error


def _queue_full(
    full: FullQueue, topic: str, message_id: str, capacity: int, timeout_s: float
) -> QueueFull:
    return QueueFull(
        f"{topic} [{message_id}] was not published: in the queue {full.queue}, {full.found}"
        f" messages wait, expected fewer than {capacity} within {timeout_s:g} s. Nobody got it."
        " Start more workers for that queue, wait longer, or raise the capacity.",
        message_id=message_id,
        repeat_with={"message_id": message_id},
        queue=full.queue,
        capacity=capacity,
        found=full.found,
    )
