"""Topics: publish a message to every subscriber, and register the subscribers."""

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
        """Publish a message to every subscriber of a topic, or to none; once per publish id.

        Args:
            topic: the topic that the subscribers registered for.
            body: the message's body; it is stored once for all of them.
            message_id: the value of the two id fields in each subscriber's head.
            root_id: the value of the root id field.
            parent_id: the value of the parent id field.
            sequence: the sequence whose order the message keeps; "" for none.
            publish_id: the same for every repetition of one publish; "" never deduplicates.
            capacity: how many messages may wait in each of their queues before this one, without
                those that workers hold; 0 for any number.

        Returns:
            The number of queues that the message went to; None if this publish id was seen before;
            a full queue if there is one, and then the message went to none.
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
            subscriber: its name, which is the task's name.
            topics: the topics that it subscribes to.
            queue: the queue that its messages go to.
            pieces: the five pieces of a message's head. The gaps between them are filled with the
                message id, the message id again, the root id and the parent id.
            priority: the priority step of its messages.
            order: "aggregate" keeps the messages of one publisher's sequence in order;
                "subscription" keeps all messages of the queue in order; "none" keeps no order.

        Returns:
            The number of topics that are new to it.

        Raises:
            ValueError: there are not 5 pieces, or the queue's name would collide with the queue's
                own keys.
        """
        if len(pieces) != 5:
            raise ValueError(f"a head has 5 pieces around its 4 gaps, not {len(pieces)}")
        args = [self.prefix, subscriber, checked(queue), priority, *pieces, order, *topics]
        return int(_subscribe(self.client, self.routing_keys, args))

    def unsubscribe(self, subscriber: str, topics: Iterable[str]) -> int:
        """Remove a subscriber from topics; messages that it was sent before stay.

        Args:
            subscriber: its name.
            topics: the topics to leave.

        Returns:
            The number of topics that it had subscribed to.
        """
        with self.client.pipeline(transaction=True) as pipe:
            for topic in topics:
                pipe.hdel(self.key(f"routes:{topic}"), subscriber)
                pipe.srem(self.key(f"topics_of:{subscriber}"), topic)
            return sum(pipe.execute()[::2])
