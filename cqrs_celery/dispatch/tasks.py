"""The Celery tasks behind handlers and subscriptions.

What they need of Celery: JSON, late acknowledgement, no acknowledgement of what was lost. Their
request class, which runs in the worker's main process, turns every outcome into one settlement.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import celery
import msgspec
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from ..clock import elapsed_s
from ..errors import (
    AggregateNotFound,
    LeaseLost,
    MalformedMessage,
    PublishFailed,
    StaleVersion,
    StoreUnavailable,
)
from ..messages.message import Command
from ..messages.metadata import Metadata
from ..refusal import Refusal
from ..store.events import POSITION_HEADER, Lease, RecordedEvent
from ..store.refusals import check_stream, check_text
from ..store.stream import StreamName
from .bus import Attempt, record_of
from .definitions import Definition
from .envelope import (
    IDEMPOTENCY_KEY,
    MESSAGE_ID,
    checked_key,
    command_id_of,
    is_message,
    key_of,
    pack_command,
    unpack_command,
    unpack_events,
    unpack_message,
)
from .in_process import SentResult, check_nested, later, put_off, sending_later
from .results import CommandAsyncResult, CommandResult, result_from
from .runtime import Runtime, runtime_of

logger = logging.getLogger(__name__)

#: Of a command's representation, how much its message carries for logs and events, as Celery does.
REPR_CHARACTERS = 1024

#: The header that tells the transport what a message must stay in order with.
SEQUENCE_HEADER = "cqrs_sequence"

#: The header in which a retried message remembers when it first failed, seconds of the epoch.
FIRST_FAILED_AT = "cqrs_first_failed_at"

#: The delivery info under which the worker's main process says what it holds.
LEASE = "cqrs_lease"

#: The delivery info that says until when, by `elapsed_s`, nobody else can have it.
HELD_UNTIL = "cqrs_held_until"


def command_queue(task_name: str) -> str:
    """Return the queue of a command: its application's, which is its name's first segment."""
    return f"{task_name.partition('.')[0]}.commands"


class NoLongerHeld(Ignore):
    """Say that a worker's message is another's by now, and so may be what it has behind it."""


class StoreAway(Ignore):
    """The event store did not answer; the message goes back, and is tried again later.

    Not Celery's Reject, of which each is logged with its traceback.
    """


class HandlerTask(celery.Task):
    """Be a task that runs a declared handler."""

    abstract = True
    Request = "cqrs_celery.workers.request:Request"

    serializer = "json"
    acks_late = True
    reject_on_worker_lost = True
    acks_on_timeout = False

    definition: Definition
    #: Where its messages go that no option and no `task_routes` send elsewhere, and where workers
    #: look for them.
    home_queue: str

    @property
    def runtime(self) -> Runtime:
        """The CQRS application that it belongs to."""
        return runtime_of(self.app, self.name)

    def _settled(self, work: Callable[[], CommandResult]) -> CommandResult:
        """Do a worker's work; what is no outcome of it goes back to the queue.

        What the worker was given before it was frozen, others may have done meanwhile: it is not
        begun.
        """
        is_worker = not (self.request.called_directly or self.request.is_eager)
        if is_worker and not self._is_held:
            logger.error(
                "lease lost, not started: task %s[%s]",
                self.name,
                self.request.id,
                extra={"task": self.name, "task_id": self.request.id},
            )
            raise NoLongerHeld("its lease was lost before it was started")
        try:
            return work()
        except LeaseLost as error:
            if not is_worker:
                raise
            logger.error(
                "lease lost, commit refused: task %s[%s]: %s",
                self.name,
                self.request.id,
                error,
                extra={
                    "task": self.name,
                    "task_id": self.request.id,
                    "message_id": error.message_id,
                    "why": str(error),
                },
            )
            raise NoLongerHeld(str(error)) from error
        except StoreUnavailable as error:
            if not is_worker:
                raise
            logger.debug(
                "the store is away, the message of %s [%s] waits",
                self.name,
                self.request.id,
                exc_info=True,
                extra={"task": self.name, "task_id": self.request.id},
            )
            raise StoreAway(str(error)) from None

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the task's message; in eager mode inside a handler, run it when that is through."""
        sent = later()
        if sent is None or not self.app.conf.task_always_eager:
            return super().apply_async(args, kwargs, **options)
        options["task_id"] = options.get("task_id") or uuid()
        result = SentResult(options["task_id"], self.name)
        put_off.send(sender=self, task_id=result.id, args=args)
        send = super().apply_async
        sent.add(lambda: result.settle(send(args, kwargs, **options)))
        return result

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run the task in this process."""
        with sending_later():
            return super().apply(args, kwargs, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """Retry as Celery does; the message remembers when it first failed."""
        headers = {**self._retry_headers, **(self.request.headers or {})}
        return super().retry(*args, **{**options, "headers": headers})

    @property
    def _retry_headers(self) -> dict[str, Any]:
        """What a retry's message has beside the headers of the message before it."""
        return {FIRST_FAILED_AT: time.time()}

    @property
    def _delivery_info(self) -> dict[str, Any]:
        return (self.request.properties or {}).get("delivery_info") or {}

    @property
    def _lease(self) -> Lease | None:
        held = self._delivery_info.get(LEASE)
        return Lease(*held) if held else None

    @property
    def _is_held(self) -> bool:
        """Whether the worker still holds the message, which costs a look only after a lease."""
        lease = self._lease
        if lease is None or elapsed_s() <= self._delivery_info.get(HELD_UNTIL, 0):
            return True
        try:
            with self.app.producer_or_acquire() as producer:
                is_held = getattr(producer.channel, "is_held", None)
                return is_held is None or bool(is_held(*lease))
        except (OperationalError, OSError):
            return True


class CommandTask(HandlerTask):
    """The task of a command: its name is the command's, its argument the command."""

    abstract = True
    #: Celery logs them at info, in one line: they are whoever sent the command's to deal with.
    throws = (Refusal, StaleVersion, AggregateNotFound)

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a command; it is ordered with the others to its aggregate.

        Args:
            args: the command alone.
            kwargs: none.
            options: Celery's own, and `idempotency_key`: the same whenever the command is sent
                again, which then has its effect once.

        Raises:
            UnwritableMessage: it is too large, or would not be read as it is.
            PublishFailed: the broker did not take it.
            TypeError: something else is given than the command alone.
            ValueError: the key is no text of 1 to 200 characters.
            InvalidText: the key, the task's id or the aggregate's has a NUL, or half of a surrogate
                pair.
        """
        command = self._sent(args, kwargs)
        repeat_with = _repeat_with(options)
        runtime = self.runtime
        packed, options = prepare_command(command, runtime, {**options, **repeat_with})
        route(self.app, self.name, options, home_queue=self.home_queue)
        with publishing(self.app, options["task_id"], self.name, repeat_with):
            result = super().apply_async((packed,), {}, **options)
        _note_sent(runtime, options, self.name)
        return result

    def delay(
        self,
        *args: Any,
        task_id: str | None = None,
        idempotency_key: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Send a command; see `apply_async`, of which these are the options."""
        given = {"task_id": task_id, IDEMPOTENCY_KEY: idempotency_key}
        options = {name: value for name, value in given.items() if value is not None}
        return self.apply_async(args, kwargs, **options)

    def _sent(self, args: Any, kwargs: Any) -> Any:
        """Return the command that is to be sent, or its plain values.

        Raises:
            TypeError: something else is given, such as the command's fields.
        """
        given = [*(args or ()), *(kwargs or {}).values()]
        if len(given) == 1 and isinstance(given[0], (Command, dict)):
            return given[0]
        name = self.definition.messages[0].__qualname__
        fields = ", ".join(f"{field}=…" for field in kwargs or ()) or "…"
        one = len(given) == 1
        found = f"one of type {type(given[0]).__qualname__}" if one else f"{len(given)} arguments"
        raise TypeError(
            f"{self.name} takes its message alone; found {found}. Write {name}({fields}).delay(),"
            f" or {self.definition.function.__name__}.delay({name}({fields}))"
        )

    def apply(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Carry out a command in this process, as a task; options are those of `apply_async`.

        Raises:
            NestedExecution: a handler does that.
        """
        check_nested(self.definition.messages[0].__qualname__, "apply()")
        key = options.pop(IDEMPOTENCY_KEY, None)
        if key is not None:
            packed, _ = prepare_command(
                self._sent(args, kwargs), self.runtime, {IDEMPOTENCY_KEY: key}
            )
            args, kwargs = (packed,), {}
        result = super().apply(args, kwargs, **options)
        if result.successful():
            result._result = result_from(result._result, self.definition.returned)
        return result

    def AsyncResult(self, task_id: str, **options: Any) -> CommandAsyncResult:  # noqa: N802
        """Return the result of a sent command, by its task's id: it gets a `CommandResult`."""
        options = {"backend": self.backend, "task_name": self.name, "app": self.app, **options}
        return CommandAsyncResult(task_id, returned=self.definition.returned, **options)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Carry out a command; returns its result as plain values.

        Raises:
            MessageError: the argument can't be read; a dead letter.
            NestedExecution: a handler called this.
            Exception: what the handler raised: the command's outcome, nothing was committed.
        """
        check_nested(self.definition.messages[0].__qualname__, "its task")
        result = self._settled(lambda: self._carry_out(_received(self, args, kwargs)))
        return msgspec.to_builtins(result, str_keys=True)

    def _carry_out(self, argument: Any) -> CommandResult:
        runtime = self.runtime
        if isinstance(argument, Command):
            argument = pack_command(argument, runtime.serializer)
        key = key_of(argument)
        command_id = self.request.id or uuid() if key is None else command_id_of(self.name, key)
        # What begins a trace is the command, not one of its sendings.
        root_id = "" if self.request.root_id == self.request.id else self.request.root_id
        command, metadata = unpack_command(
            argument,
            runtime.serializer,
            command_id=command_id,
            root_id=root_id or "",
            parent_id=self.request.parent_id or "",
        )
        attempt = Attempt(
            command,
            metadata,
            command=record_of(command_id, runtime.command_id_ttl_s, self.definition.returned),
            find=lambda: runtime.store.find_command(command_id),
            # Always: it may have been sent twice, or come again without the queue's knowing that it
            # was started, as after a store's reply that was lost.
            looks_first=True,
            stream=stream_of(command, runtime.application),
            lease=self._lease,
        )
        return runtime.bus.run(self.definition, attempt)


class SubscriptionTask(HandlerTask):
    """Be the task of a subscription's function: its argument is a recorded event, or a message."""

    abstract = True
    ignore_result = True
    acks_on_failure = False

    @property
    def _retry_headers(self) -> dict[str, Any]:
        # By the position, the relay knows what is not handled, whatever the retry's arguments are.
        [argument, *_] = self.request.args or [None]
        position = argument.get("position") if isinstance(argument, dict) else None
        return {**super()._retry_headers, **({POSITION_HEADER: position} if position else {})}

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send a recorded event or message by hand; it is handled beside its sequence."""
        route(self.app, self.name, options, home_queue=self.home_queue)
        return super().apply_async(args, kwargs, **options)

    def run(self, *args: Any, **kwargs: Any) -> None:
        """Handle a recorded event, or a message.

        Raises:
            MessageError: the argument can't be read; a dead letter.
            Exception: what the function raised; a dead letter that holds up its sequence.
        """
        self._settled(lambda: self._handle(_received(self, args, kwargs)))

    def _handle(self, argument: Any) -> CommandResult:
        runtime = self.runtime
        if is_message(argument):
            message, metadata = unpack_message(argument, runtime.serializer)
            attempt = self._attempt(message, metadata, message_id=argument[MESSAGE_ID])
            return runtime.bus.run(self.definition, attempt)
        for recorded in self._taken([argument]):
            self._handle_one(recorded)
        return CommandResult()

    def _handle_one(self, recorded: RecordedEvent[Any]) -> None:
        store, message_id = self.runtime.store, recorded.event_id
        if recorded.parts > 1:
            # Before it was split, it may have been handled as a whole.
            if store.find_command(f"{message_id}:{self.name}"):
                return
            message_id = f"{message_id}#{recorded.part}"
        attempt = self._attempt(
            recorded.event,
            _caused_by(recorded),
            message_id=message_id,
            recorded=recorded,
            # What comes again for a later part's sake was done up to that.
            looks_first=recorded.parts > 1,
        )
        self.runtime.bus.run(self.definition, attempt)

    def _taken(self, arguments: Sequence[Any]) -> list[RecordedEvent[Any]]:
        """Return the events that the function takes, of what came.

        Others come where an old event was split, or dropped: it goes to whoever takes a part.
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

    def _attempt(
        self,
        message: Any,
        metadata: Metadata,
        *,
        message_id: str,
        recorded: RecordedEvent[Any] | None = None,
        looks_first: bool = False,
    ) -> Attempt:
        """Return what the function runs for; it commits once, however often the message comes."""
        runtime = self.runtime
        record_id = f"{message_id}:{self.name}"
        record = record_of(record_id, runtime.command_id_ttl_s, self.definition.returned)
        return Attempt(
            message,
            metadata,
            command=lambda _: record(None),
            find=lambda: runtime.store.find_command(record_id),
            recorded=recorded,
            lease=self._lease,
            looks_first=looks_first,
        )


class BatchTask(SubscriptionTask):
    """Be the task of a function that takes many events: its argument is a list of them, or one."""

    abstract = True

    def retry(self, *args: Any, exc: BaseException | None = None, **options: Any) -> Any:
        """Retry a single event; several go back to the queue, to be handled one by one."""
        if exc is not None and isinstance(self.request.args[0], list):
            raise exc
        return super().retry(*args, exc=exc, **options)

    def _handle(self, argument: Any) -> CommandResult:
        recorded = self._taken(argument if isinstance(argument, list) else [argument])
        if not recorded:
            return CommandResult()
        return self.runtime.bus.run(self.definition, Attempt(recorded, _caused_by(recorded[0])))


def _caused_by(recorded: RecordedEvent[Any]) -> Metadata:
    return Metadata.caused_by(recorded.event_id, recorded.metadata, is_stored=True)


def prepare_command(
    command: Any, runtime: Runtime, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a command as a task's argument, and the options to send it with.

    The caller's key goes into the argument, so that it stays with the command through retries and
    dead letters. The task's id stays its own: each sending has a result.
    """
    options = dict(options)
    # Packed first: a representation of what is nested too deep can't be made.
    if isinstance(command, Command):
        packed: Any = pack_command(command, runtime.serializer)
        text = repr(command)
    else:
        text, packed = repr(command), command
        command = runtime.serializer.from_plain("command", packed)
    key = options.pop(IDEMPOTENCY_KEY, None)
    if key is not None:
        packed = {**packed, IDEMPOTENCY_KEY: checked_key(key)}
    task_id = options.get("task_id") or uuid()
    check_text(task_id, "a command's task_id")
    sequence = sequence_of(command, runtime.application)
    headers = dict(options.get("headers") or {})
    if sequence:
        headers[SEQUENCE_HEADER] = sequence
    return packed, {
        "argsrepr": f"({shortened(text)},)",
        **options,
        "task_id": task_id,
        "headers": headers,
    }


def shortened(text: str) -> str:
    """Return a representation for logs and events, with its beginning alone if it is long."""
    return text if len(text) <= REPR_CHARACTERS else f"{text[:REPR_CHARACTERS]}…"


def route(app: celery.Celery, name: str, options: dict[str, Any], *, home_queue: str) -> None:
    """Send a message home, unless its options or `task_routes` say where it goes."""
    is_told = any(options.get(option) for option in ("queue", "exchange", "routing_key"))
    if not is_told and not app.amqp.router.lookup_route(name, (), {}, options):
        options["queue"] = home_queue


def sequence_of(command: Command, application: str) -> str:
    """Return what a command stays in order with: its aggregate's stream; "" for nothing."""
    stream = stream_of(command, application)
    return stream.key if stream else ""


def stream_of(command: Command, application: str) -> StreamName | None:
    """Return the stream of the aggregate that a command is for; None if it is for none.

    Raises:
        InvalidText: the aggregate's id has a NUL, or half of a surrogate pair.
    """
    aggregate, key = command.__aggregate__, command.__key__
    if aggregate is None or key is None:
        return None
    kind = getattr(aggregate, "__aggregate_type__", aggregate.__name__)
    name = command.__registered__.full_name(application)
    stream = StreamName(name.partition(".")[0], kind, str(getattr(command, key)))
    check_stream(stream)
    return stream


def _repeat_with(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make one of two sendings of a command."""
    ids = {"task_id": options.get("task_id") or uuid()}
    key = options.get(IDEMPOTENCY_KEY)
    return ids if key is None else {**ids, IDEMPOTENCY_KEY: key}


@contextmanager
def publishing(
    app: celery.Celery, message_id: str, name: str, repeat_with: dict[str, str]
) -> Iterator[None]:
    """Turn a server that does not take a message into `PublishFailed`.

    Args:
        app: sends it.
        message_id: its id.
        name: its task's.
        repeat_with: the arguments with which it is to be sent again.
    """

    def not_sent(server: str, setting: str, error: BaseException) -> PublishFailed:
        again = ", ".join(f"{name}={value!r}" for name, value in repeat_with.items())
        return PublishFailed(
            f"{name} [{message_id}] was not sent: the {server} does not answer"
            f" ({' '.join(str(error).split())}). Start it, or correct {setting}; then send it again"
            f" with {again}: the error has that as repeat_with.",
            message_id=message_id,
            repeat_with=repeat_with,
        )

    try:
        yield
    except OperationalError as error:
        raise not_sent("broker", "broker_url", error) from error
    except Exception as error:
        lost = None if app.conf.task_always_eager else _lost_result_backend(app, error)
        if lost is None:
            raise
        raise not_sent("result backend", "result_backend", lost) from error


def _lost_result_backend(app: celery.Celery, error: Exception) -> BaseException | None:
    """Return the driver's error if the result backend does not answer, else None.

    Celery subscribes to the result before it publishes, and gives up with a RuntimeError, whose
    text asks for a restart of the application. Sending needs none: the driver's error says what is
    wrong.
    """
    errors = getattr(app.backend, "connection_errors", ())
    return next((one for one in (error, error.__cause__) if isinstance(one, errors)), None)


def _only(task: celery.Task, args: Any, kwargs: Any) -> Any:
    """Return a task's single argument.

    Raises:
        TypeError: there is another number of them.
    """
    given = [*(args or ()), *(kwargs or {}).values()]
    if len(given) != 1:
        raise TypeError(f"{task.name} takes its message alone; found {len(given)} arguments")
    return given[0]


def _received(task: celery.Task, args: Any, kwargs: Any) -> Any:
    """Return the single argument of a message that came for a task.

    Raises:
        MalformedMessage: there is another number of them.
    """
    try:
        return _only(task, args, kwargs)
    except TypeError as error:
        raise MalformedMessage(str(error), name="", version=0) from error


def send_unhandled(command: Command, runtime: Runtime, options: dict[str, Any]) -> Any:
    """Send a command whose handler this process does not know; its application's queue gets it.

    Raises:
        HandlerNotFound: tasks run eagerly, so it can't be run elsewhere.
        PublishFailed: the broker did not take it.
    """
    if runtime.app.conf.task_always_eager:
        raise runtime.bus.missing(command)
    name = runtime.serializer.name_of(type(command))
    repeat_with = _repeat_with(options)
    packed, options = prepare_command(command, runtime, {**options, **repeat_with})
    route(runtime.app, name, options, home_queue=command_queue(name))
    with publishing(runtime.app, options["task_id"], name, repeat_with):
        result_class = partial(CommandAsyncResult, app=runtime.app)
        result = runtime.app.send_task(name, (packed,), result_cls=result_class, **options)
    _note_sent(runtime, options, name)
    return result


def _note_sent(runtime: Runtime, options: Mapping[str, Any], name: str) -> None:
    queue = options.get("queue")
    if runtime.sent is not None and type(queue) is str:
        runtime.sent.note_sent(queue, name)
