"""Publish messages that are not stored to the tasks of all their subscribers."""

from __future__ import annotations

import json
from typing import Any, NamedTuple, Protocol

from ..errors import InvalidSetting, MalformedMessage, PublishFailed
from ..messages.message import Message
from ..messages.metadata import new_id
from .context import current_metadata
from .definitions import definitions
from .envelope import MESSAGE_ID, pack_message
from .handler import task_of
from .keys import checked_key
from .runtime import Runtime
from .sending import publishing
from .topics import topic_of


class Published(NamedTuple):
    """The result of a publish: the message's id, and the number of queues it went to.

    `queues` is None if the id had been published before; then nothing was published again.
    """

    message_id: str
    queues: int | None


class Topics(Protocol):
    """The topics of a broker that knows its subscribers."""

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
        """Deliver a message to all subscribers of a topic or to none, once per message id.

        Returns:
            The number of queues it went to; None if its id had been published before.

        Raises:
            QueueFull: there was no room in time; nothing was published.
            PublishFailed: the broker does not answer.
        """


class Publisher:
    """The publisher of one application's messages.

    Args:
        runtime: the application's runtime.
        topics: the broker's topics; None if the broker knows no subscribers. Then a task is sent to
            each subscriber that this process knows.
        body: the texts before and after a message in the body of a Celery task.
    """

    def __init__(self, runtime: Runtime, topics: Topics | None, *, body: tuple[str, str]) -> None:
        self._runtime = runtime
        self._topics = topics
        self._body = body

    def publish(
        self, message: Any, *, capacity: int | None, timeout_s: float, message_id: str | None
    ) -> Published:
        """Publish a message; see `CQRS.publish`."""
        if getattr(message, "__kind__", None) != "message":
            raise TypeError(
                f"publish takes a Message; found {type(message).__qualname__}. Events are recorded"
                " by aggregates, commands are sent with delay()"
            )
        if capacity is not None and (type(capacity) is not int or capacity < 1):
            raise ValueError(f"capacity is a whole number from 1, or None; found {capacity!r}")
        if not 0 <= timeout_s < float("inf"):
            raise ValueError(f"timeout_s is a number of seconds from 0; found {timeout_s!r}")
        own_id = new_id() if message_id is None else checked_key(message_id, what="a message id")
        packed = pack_message(message, self._runtime.serializer, message_id=own_id)
        if self._topics is None or self._runtime.app.conf.task_always_eager:
            return self._send(message, packed, capacity)
        name = self._runtime.serializer.name_of(type(message))
        try:
            count = self._topics.publish(
                topic_of(type(message), self._runtime.serializer),
                _json(name, packed).join(self._body),
                message_id=_inside_json(own_id),
                root_id=_inside_json(packed["metadata"]["correlation_id"]),
                parent_id=_inside_json(current_metadata().causation_id),
                sequence=sequence_of(message, name),
                capacity=capacity or 0,
                timeout_s=timeout_s,
            )
        except PublishFailed as error:
            error.amend(repeat_with={"message_id": own_id})
            raise
        return Published(own_id, count)

    def _send(self, message: Message, packed: dict[str, Any], capacity: int | None) -> Published:
        app = self._runtime.app
        if capacity is not None and not app.conf.task_always_eager:
            raise InvalidSetting(
                f"a message was published with capacity = {capacity}, but the broker can't say how"
                " many messages wait: that needs the reliable queue. Leave it out, or set"
                " broker_transport = 'cqrs_celery.transport:Transport' beside a redis:// URL",
                setting="broker_transport",
                accepted="cqrs_celery.transport:Transport",
            )
        own_id = packed[MESSAGE_ID]
        subscribers = definitions.subscribers_of(type(message))
        queues = set()
        for definition in subscribers:
            task = task_of(app, definition)
            with publishing(app, own_id, task.name, {"message_id": own_id}):
                task.apply_async((packed,), task_id=f"{own_id}:{task.name}")
            queues.add(task.home_queue)
        return Published(own_id, len(queues))


def sequence_of(message: Message, name: str) -> str:
    """Return the sequence of a message: that of its class and key, or "" without a key."""
    key = message.__key__
    return "" if key is None else f"{name}:{getattr(message, key)}"


def _json(name: str, packed: dict[str, Any]) -> str:
    try:
        return json.dumps(packed, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MalformedMessage(
            f"{name} can't be written as JSON: {error}", name=name, version=packed["version"]
        ) from error


def _inside_json(text: str) -> str:
    """Return a text escaped for a JSON string, without the quotes."""
    return json.dumps(text)[1:-1]
