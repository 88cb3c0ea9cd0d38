"""The Celery tasks of subscriptions, whose functions take one event or message, or a batch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ..store.events import POSITION_HEADER, RecordedEvent
from .attempts import Attempt, handled_id
from .envelope import MESSAGE_ID, is_message, unpack_events, unpack_message
from .results import CommandResult
from .sending import route
from .tasks import HandlerTask, only_argument

logger = logging.getLogger(__name__)


class SubscriptionTask(HandlerTask):
    """The task of a subscription's function; its argument is a recorded event or a message."""

    abstract = True
    ignore_result = True
    acks_on_failure = False

    @property
    def retry_headers(self) -> dict[str, Any]:
        """The headers of a retry's message, the event's position among them."""
        # The position tells the relay which event is not handled, whatever arguments the retry has.
        [argument, *_] = self.request.args or [None]
        position = argument.get("position") if isinstance(argument, dict) else None
        return {**super().retry_headers, **({POSITION_HEADER: position} if position else {})}

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a recorded event or message by hand; it is handled outside of its sequence."""
        route(self.app, self.name, options, home_queue=self.home_queue)
        return super().apply_async(args, kwargs, **options)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Handle a recorded event, or a message.

        Raises:
            MessageError: the argument can't be read; the message becomes a dead letter.
            Exception: the exception that the function raised. After the retries, the message
                becomes a dead letter, which blocks its sequence; "continue" lets the others pass.
        """
        self.settled(lambda: self._handle(only_argument(self, args, kwargs)))

    def _handle(self, argument: Any) -> CommandResult:
        runtime = self.runtime
        if is_message(argument):
            message, metadata = unpack_message(argument, runtime.serializer)
            attempt = Attempt.for_message(
                message,
                self.definition,
                runtime,
                message_id=argument[MESSAGE_ID],
                metadata=metadata,
                task_name=self.name,
                lease=self.lease,
            )
            return runtime.bus.run(self.definition, attempt)
        for recorded in self._taken([argument]):
            self._handle_one(recorded)
        return CommandResult()

    def _handle_one(self, recorded: RecordedEvent[Any]) -> None:
        runtime = self.runtime
        if recorded.parts > 1:
            # It may have been handled as a whole, before an upcaster split it.
            whole = handled_id(recorded.event_id, self.name)
            if runtime.store.find_command(whole):
                return
        attempt = Attempt.for_event(
            recorded, self.definition, runtime, task_name=self.name, lease=self.lease
        )
        runtime.bus.run(self.definition, attempt)

    def _taken(self, arguments: Sequence[Any]) -> list[RecordedEvent[Any]]:
        """Return those of the arguments' events that the function takes.

        If an upcaster splits or drops an old event, all subscribers of its parts get the whole of
        it, and each function takes only its own parts.
        """
        runtime, taken = self.runtime, []
        names = runtime.bus.definitions.names_taken(self.definition)
        for argument in arguments:
            if isinstance(argument, RecordedEvent):
                taken.append(argument)
                continue
            found = unpack_events(argument, runtime.serializer)
            fitting = [one for one in found if one.event.__registered__.name in names]
            if len(fitting) < len(found) or not found:
                logger.debug(
                    "event passed over by %s: %d of its %d parts are not for it",
                    self.name,
                    len(found) - len(fitting),
                    len(found),
                    extra={"task": self.name, "parts": len(found)},
                )
            taken += fitting
        return taken


class BatchTask(SubscriptionTask):
    """The task of a function that takes a batch; its argument is a list of events, or one."""

    abstract = True

    def retry(self, *args: Any, exc: BaseException | None = None, **options: Any) -> Any:
        """Retry a single event; return several to the queue, to be handled one by one."""
        if exc is not None and isinstance(self.request.args[0], list):
            raise exc
        return super().retry(*args, exc=exc, **options)

    def _handle(self, argument: Any) -> CommandResult:
        recorded = self._taken(argument if isinstance(argument, list) else [argument])
        if not recorded:
            return CommandResult()
        return self.runtime.bus.run(self.definition, Attempt.for_batch(recorded))
