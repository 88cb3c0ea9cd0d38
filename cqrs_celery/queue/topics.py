"""Topics: a message for every subscriber, and who the subscribers are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .names import checked
from .scripts import load
from .values import FullQueue
from .virtual_host import VirtualHost

_publish_topic = load("publish_topic")
_subscribe = load("subscribe")


class TopicQueues(VirtualHost):
    """The topics of one virtual host and their subscribers; see `VirtualHost` for the arguments."""

    def publish_topic(
        self,
        topic: str,
        body: str | bytes,
        *,
        message_id: str,
        root_id: str,
        parent_id: str = "",
        sequence: str = "",
        publish_id: str = "",
        capacity: int = 0,
    ) -> int | FullQueue | None:
        """Give a message to every subscriber of a topic, or to none; once per publish id.

        Args:
            topic: what the subscribers registered for.
            body: kept once for all of them.
            message_id: fills the id holes of their heads.
            root_id: fills the root hole.
            parent_id: fills the parent hole.
            sequence: what it must stay in order with; "" for nothing.
            publish_id: the same for every repetition of one publish; "" never deduplicates.
            capacity: how many messages may wait in each of their queues before this one, those that
                workers hold not counted; 0 for any number.

        Returns:
            The number of queues it went to; None if this publish id was seen; a queue that is full,
            and then it went to none.
        """
        args = [self.prefix, publish_id, self.dedup_ttl_ms, topic, body]
        args += [message_id, root_id, parent_id, sequence, capacity]
        answer = _publish_topic(self.client, self.routing_keys, args)
        if isinstance(answer, list):
            return FullQueue(answer[0].decode(), int(answer[1]))
        return None if int(answer) < 0 else int(answer)

    def subscribe(
        self,
        subscriber: str,
        topics: Sequence[str],
        *,
        queue: str,
        pieces: Sequence[str],
        priority: int = 0,
        order: str = "aggregate",
    ) -> int:
        """Register, or replace, a subscriber of topics; it stays until it is unsubscribed.

        Args:
            subscriber: its name; the task's.
            topics: what it gets.
            queue: where it gets it.
            pieces: the five pieces of a message's head. Between them go the message id, the
                message id, the root id and the parent id.
            priority: the priority step of its messages.
            order: "aggregate": those of one publisher's sequence stay in order; "subscription": all
                of the queue do; "none".

        Returns:
            The number of topics that are new to it.

        Raises:
            ValueError: there are not 5 pieces, or the queue's name would collide with its own keys.
        """
        if len(pieces) != 5:
            raise ValueError(f"a head has 5 pieces around its 4 holes, not {len(pieces)}")
        args = [self.prefix, subscriber, checked(queue), priority, *pieces, order, *topics]
        return int(_subscribe(self.client, self.routing_keys, args))

    def unsubscribe(self, subscriber: str, topics: Iterable[str]) -> int:
        """Remove a subscriber from topics; returns from how many. What it was sent stays."""
        with self.client.pipeline(transaction=True) as pipe:
            for topic in topics:
                pipe.hdel(self.key(f"routes:{topic}"), subscriber)
                pipe.srem(self.key(f"topics_of:{subscriber}"), topic)
            return sum(pipe.execute()[::2])
