"""Send commands: their task's argument and options, their queue, and the errors of sending."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import celery
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from ..errors import PublishFailed
from ..messages.message import Command
from ..store.refusals import check_text
from .attempts import stream_of
from .envelope import IDEMPOTENCY_KEY, pack_command, with_context_of
from .keys import checked_key
from .results import CommandAsyncResult
from .runtime import Runtime

#: The most characters of a command's representation in its message, which Celery shows in logs and
#: events.
REPR_CHARACTERS = 1024

#: The header with the sequence in which the transport keeps a message in order.
SEQUENCE_HEADER = "cqrs_sequence"


def command_queue(task_name: str) -> str:
    """Return a command's queue, that of the application in its name's first segment."""
    return f"{task_name.partition('.')[0]}.commands"


def prepare_command(
    command: Any, runtime: Runtime, options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """Return a command as a task's argument, and the options to send it with.

    The caller's key becomes a part of the argument, so that it stays with the command through
    retries and dead letters. It does not replace the task's id, since each sending has its own
    result.
    """
    options = dict(options)
    # Packed first: this refuses values that are nested too deeply for repr().
    if isinstance(command, Command):
        packed: Any = pack_command(command, runtime.serializer)
        text = repr(command)
    else:
        text, packed = repr(command), with_context_of(command, _argument_of_current_task(runtime))
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


def _argument_of_current_task(runtime: Runtime) -> Any:
    """Return the argument of the running task, which may send the next task of its chain."""
    task = runtime.app.current_worker_task
    args = task.request.args if task is not None else None
    return args[0] if args else None


def shortened(text: str) -> str:
    """Return a representation for logs and events, cut after `REPR_CHARACTERS`."""
    return text if len(text) <= REPR_CHARACTERS else f"{text[:REPR_CHARACTERS]}…"


def route(app: celery.Celery, name: str, options: dict[str, Any], *, home_queue: str) -> None:
    """Set a message's queue to `home_queue`, unless its options or `task_routes` route it."""
    is_told = any(options.get(option) for option in ("queue", "exchange", "routing_key"))
    if not is_told and not app.amqp.router.lookup_route(name, (), {}, options):
        options["queue"] = home_queue


def sequence_of(command: Command, application: str) -> str:
    """Return the sequence of a command: its aggregate's stream, or "" without an aggregate."""
    stream = stream_of(command, application)
    return stream.key if stream else ""


def repeat_with_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that make a second sending of a command the same as the first."""
    ids = {"task_id": options.get("task_id") or uuid()}
    key = options.get(IDEMPOTENCY_KEY)
    return ids if key is None else {**ids, IDEMPOTENCY_KEY: key}


@contextmanager
def publishing(
    app: celery.Celery, message_id: str, name: str, repeat_with: dict[str, str]
) -> Iterator[None]:
    """Raise `PublishFailed` if a server does not accept the message that is sent inside.

    Args:
        app: the Celery application that sends the message.
        message_id: the message's id.
        name: the name of its task.
        repeat_with: the arguments to use if it is sent again.
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
    """Return the driver's error if the result backend does not answer, or else None.

    Celery subscribes to the result before it publishes. If that fails, it raises a RuntimeError
    whose text asks for a restart of the application. Sending needs no restart, and the driver's
    error says what is wrong.
    """
    errors = getattr(app.backend, "connection_errors", ())
    return next((one for one in (error, error.__cause__) if isinstance(one, errors)), None)


def send_unhandled(command: Command, runtime: Runtime, options: dict[str, Any]) -> Any:
    """Send a command whose handler this process does not know to its application's queue.

    Raises:
        HandlerNotFound: tasks run eagerly, so the handler must be in this process.
        PublishFailed: the broker did not accept the message.
    """
    if runtime.app.conf.task_always_eager:
        raise runtime.bus.missing(command)
    name = runtime.serializer.name_of(type(command))
    repeat_with = repeat_with_of(options)
    packed, options = prepare_command(command, runtime, {**options, **repeat_with})
    route(runtime.app, name, options, home_queue=command_queue(name))
    with publishing(runtime.app, options["task_id"], name, repeat_with):
        result_class = partial(CommandAsyncResult, app=runtime.app)
        result = runtime.app.send_task(name, (packed,), result_cls=result_class, **options)
    note_sent(runtime, options, name)
    return result


def note_sent(runtime: Runtime, options: Mapping[str, Any], name: str) -> None:
    """Pass the queue to which a command was sent to the runtime's observer.

    Args:
        runtime: the runtime of the application that sent it.
        options: the options that it was sent with.
        name: the command's name.
    """
    queue = options.get("queue")
    if runtime.sent is not None and type(queue) is str:
        runtime.sent.note_sent(queue, name)
