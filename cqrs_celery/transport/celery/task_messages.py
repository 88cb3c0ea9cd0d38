"""Keep a worker alive whatever its messages hold: what is no task message becomes a dead letter.

Celery takes the types of a message's parts for granted: one of another type ends the worker, and
every worker that gets it after that, or is acknowledged and gone. Here, each message is checked
before Celery sees it, and what Celery stumbles over all the same is set aside with its reason.
Errors that are not the message's fault, of a connection or of memory, stay what they are.
"""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import redis
from celery import current_app
from celery.exceptions import InvalidTaskError, TaskRevokedError
from kombu.exceptions import KombuError, OperationalError

from ...nesting import READ_LEVELS, is_too_deep
from ..qos import REASON

logger = logging.getLogger(__name__)

#: Of an error's text, how much a dead letter keeps: it may quote the whole message.
ERROR_CHARACTERS = 2000

#: Years ahead for which a message may want a worker to wait. Python's timers end with an error, and
#: Celery's with its worker, at some three hundred.
_YEARS_AHEAD = 100

_JSON = "application/json"

#: The pools that run tasks in this process, beside its event loop, and ask before each begins.
ASKING_POOLS = tuple(f"celery.concurrency.{name}" for name in ("thread", "gevent", "eventlet"))

#: Arguments of Celery's tracer: task, id, request, body, content type, content encoding.
_TRACED = 6

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Signatures = list[dict[str, Any]]


class _Options(msgspec.Struct):
    """The types of what follows a task, in its body or, by the rules of Celery, in its headers."""

    callbacks: _Signatures | None = None
    errbacks: _Signatures | None = None
    chain: _Signatures | None = None
    chord: dict[str, Any] | None = None


class _Headers(_Options, kw_only=True):
    """The types of the headers that Celery's worker reads, in the second protocol."""

    task: _Name
    id: _Name
    root_id: str | None = None
    parent_id: str | None = None
    group: str | None = None
    shadow: str | None = None
    eta: str | None = None
    expires: str | None = None
    retries: _Count | None = None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    origin: str | None = None
    ignore_result: bool | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    replaced_task_nesting: _Count | None = None
    headers: dict[str, Any] | None = None


class _OldBody(_Headers, kw_only=True):
    """The types of a body in the first protocol, which holds what later became headers."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    taskset: str | None = None
    utc: bool | None = None


#: What Celery calls and keeps on a task's request, over which it writes a message's headers.
_RESERVED = frozenset(
    (
        "as_execution_options", "clear", "execution_options", "get", "update",
        "_children", "_get_custom_headers", "_protected",
    )
)  # fmt: skip


#: Headers that hold an id.
_IDS = frozenset(("id", "root_id", "parent_id", "group"))

#: Headers that are only shown.
_REPRESENTATIONS = frozenset(("argsrepr", "kwargsrepr", "origin"))


def check_task(message: Any) -> None:
    """Check what a worker got, as far as it claims to be a task.

    What can't be decoded, and what is no task, is left for Celery to find.

    Raises:
        ValueError: a part has another type than Celery takes for granted; the text says which.
        InvalidTaskError: so do the arguments, the keyword arguments or the options.
    """
    headers, is_json = message.headers, message.content_type == _JSON
    if is_json and message.body and is_too_deep(_as_bytes(message.body)):
        raise ValueError(f"its body is nested deeper than {READ_LEVELS} levels")
    is_second = "task" in headers
    if is_second:
        _check_headers(headers, _Headers)
        _move_reserved(headers)
    try:
        body = message.payload
    except KombuError:
        return
    if isinstance(body, dict):
        if is_second or "task" in body:
            _check_headers({**body, **headers} if is_second else body, _OldBody)
            _refuse_reserved(body)
    elif is_second:
        if not isinstance(body, list | tuple) or len(body) != 3:
            raise ValueError(f"its body is no triple, but {type(body).__name__}")
        _check_body(*body, is_json=is_json)


def _as_bytes(body: Any) -> bytes:
    return body.encode(errors="replace") if isinstance(body, str) else bytes(body)


def _check_headers(headers: dict[str, Any], types: type[_Headers]) -> None:
    try:
        found = msgspec.convert(headers, types)
    except msgspec.ValidationError:
        # Once more, with what Celery's own worker takes all the same.
        _write_out(headers)
        found = msgspec.convert(headers, types)
    names = f"{found.task}{found.id}{found.root_id}{found.parent_id}{found.group}{found.shadow}"
    if not names.isascii():
        # Half a character is text to JSON, and can't be written anywhere.
        names.encode()
    if found.eta and found.eta[:4].isdecimal():
        last = datetime.now(UTC).year + _YEARS_AHEAD
        if int(found.eta[:4]) > last:
            raise ValueError(f"its eta is {found.eta[:40]!r}; accepted: up to the year {last}")


def _write_out(headers: dict[str, Any]) -> None:
    """Make what Celery accepts of other types what the rest of the worker takes for granted.

    An id, or the name of a group, may be a whole number, whether to ignore the result anything that
    is true or not, and what arguments look like anything at all.
    """
    for name in _IDS & headers.keys():
        if type(headers[name]) is int:
            headers[name] = str(headers[name])
    if headers.get("ignore_result") is not None:
        headers["ignore_result"] = bool(headers["ignore_result"])
    for name in _REPRESENTATIONS & headers.keys():
        if headers[name] is not None:
            headers[name] = str(headers[name])


def _move_reserved(headers: dict[str, Any]) -> None:
    """Keep the sender's headers that have names of a task's request apart from it.

    Celery's request finds the sender's headers in its `headers`; these are there too, but hide
    none of its methods.
    """
    taken = _RESERVED & headers.keys()
    if taken:
        apart = {name: headers.pop(name) for name in taken}
        own = headers.get("headers")
        if own is None:
            from celery.app.task import Context

            own = Context(headers).headers
        headers["headers"] = {**(own or {}), **apart}


def _refuse_reserved(body: dict[str, Any]) -> None:
    if taken := ", ".join(sorted(_RESERVED & body.keys())):
        raise ValueError(f"it has headers by names that Celery needs itself: {taken}")


def _check_body(args: Any, kwargs: Any, options: Any, *, is_json: bool) -> None:
    if options == _NO_OPTIONS and type(args) is list and type(kwargs) is dict:
        # As nearly every sender writes it.
        return
    if not (
        isinstance(args, list | tuple)
        and isinstance(kwargs, dict)
        and isinstance(options, dict | None)
    ):
        raise InvalidTaskError("a body was expected as [arguments, keyword arguments, options]")
    # What other serializers make may be of types that stand for these.
    if not options or not is_json:
        return
    try:
        msgspec.convert(options, _Options)
    except msgspec.ValidationError as error:
        raise InvalidTaskError(f"the options in its body: {error}") from error
    if not options.keys() <= _OPTIONS:
        from celery.app.task import Context

        # Celery writes the options over the request; its id, for one, is not theirs to say.
        taken = [name for name in options.keys() - _OPTIONS if hasattr(Context, name)]
        if taken:
            raise InvalidTaskError(f"its body has options that are not the sender's: {taken}")


_OPTIONS = frozenset(_Options.__struct_fields__)

#: What Celery sends where nothing follows a task.
_NO_OPTIONS = dict.fromkeys(_Options.__struct_fields__)


def set_aside(message: Any, reason: str, error: BaseException, errors: tuple[Any, ...]) -> None:
    """Make a dead letter of a delivered message, which is logged with its reason.

    Args:
        message: Kombu's, not settled.
        reason: in words, unless the message has one already.
        error: what happened.
        errors: those of the connection, which are only logged: the message comes again.
    """
    why = getattr(message, REASON, None) or {"reason": reason}
    text = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS]
    setattr(message, REASON, {**why, "error": text})
    # The reliable queue keeps a dead letter of it, and logs that; what others do is theirs.
    if not hasattr(message.channel, "ack_unsure"):
        logger.error(
            "message rejected: %s, task %s of queue %s: %s",
            why["reason"],
            _task_of(message),
            ascii(message.delivery_info.get("queue") or message.delivery_info.get("routing_key")),
            ascii(text)[:500],
            extra={"reason": why["reason"], "error": text},
        )
    message.reject_log_error(logger, errors)


def _task_of(message: Any) -> str:
    name, task_id = (
        ascii((message.headers or {}).get(name))[:100].strip("'") for name in ("task", "id")
    )
    return f"{name}[{task_id}]"


def is_elsewhere(error: BaseException, errors: tuple[Any, ...]) -> bool:
    """Return whether an error is not a message's fault, but a connection's, memory's, a signal's.

    Args:
        error: what was raised while a message was delivered.
        errors: those of the worker's connection.
    """
    kinds = (*errors, redis.RedisError, OperationalError, MemoryError)
    return isinstance(error, kinds) or _is_of_signal(error)


def _is_of_signal(error: BaseException) -> bool:
    """Return whether an error was raised by a signal's handler, in the midst of whatever ran.

    Celery's handler of a cold shutdown raises one in the pools that can't end a task.
    """
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    codes = {getattr(handler, "__code__", None) for handler in handlers}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def keeping_alive(original: Any) -> Any:
    """Wrap `Consumer.create_task_handler`: no message ends the worker."""

    def create_task_handler(consumer: Any, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        on_task_received = original(consumer, *args, **kwargs)
        on_invalid_task = consumer.on_invalid_task

        def on_message(message: Any) -> Any:
            if not hasattr(message.channel, "ack_unsure"):
                return on_task_received(message)
            try:
                try:
                    check_task(message)
                except InvalidTaskError as error:
                    return on_invalid_task(None, message, error)
                return on_task_received(message)
            except Exception as error:
                if is_elsewhere(error, consumer.connection_errors):
                    raise
                if message.acknowledged:
                    logger.exception(
                        "the message of task %s was settled, and then its worker failed",
                        _task_of(message),
                    )
                else:
                    set_aside(message, "malformed task message", error, consumer.connection_errors)

        return on_message

    return create_task_handler


def with_reason(reason: str) -> Callable[[Any], Any]:
    """Return what wraps a `Consumer.on_…_task`: the dead letter that it makes has a reason."""

    def wrap(original: Any) -> Any:
        def on_rejected(consumer: Any, body: Any, message: Any, *errors: Any) -> Any:
            if getattr(message, REASON, None) is None:
                texts = [f"{type(one).__name__}: {one}"[:ERROR_CHARACTERS] for one in errors]
                found = {"task": message.headers.get("task"), "error": "".join(texts)}
                setattr(message, REASON, {"reason": reason, **found})
            return original(consumer, body, message, *errors)

        return on_rejected

    return wrap


def keeping_undecodable(original: Any) -> Any:
    """Wrap `Consumer.on_decode_error`, which acknowledges: a dead letter instead."""

    def on_decode_error(consumer: Any, message: Any, exc: Any) -> Any:
        if not hasattr(message.channel, "ack_unsure"):
            return original(consumer, message, exc)
        return set_aside(message, "undecodable body", exc, consumer.connection_errors)

    return on_decode_error


def handing_over(original: Any) -> Any:
    """Wrap `BasePool.apply_async`: a task's body is read once, and no error around it is lost.

    Celery's worker has read the body when it hands a task to its pool, and the task's request holds
    what it has read; its tracer, given bytes, would read it again.

    The tracer lets an error before the task's own through. In a child process the pool catches it;
    in this process it would end the worker, or leave the message in a thread's hands for ever: here
    it is the task's failure.
    """

    def apply_async(pool: Any, target: Any, args: Any = None, *more: Any, **options: Any) -> Any:
        request = getattr(options.get("accept_callback"), "__self__", None)
        message = getattr(request, "message", None)
        if hasattr(message, "channel"):
            _check_in_hand(pool, request, message)
            args = _as_read(args, message)
            if type(pool).__module__ != "celery.concurrency.prefork":
                target = _failing_softly(target)
        return original(pool, target, args, *more, **options)

    return apply_async


def _check_in_hand(pool: Any, request: Any, message: Any) -> None:
    """Check that a task's message has not gone back while it waited in the worker.

    Raises:
        TaskRevokedError: it has; Celery's worker then gives the pool nothing.
    """
    if not hasattr(message.channel, "may_hand_over"):
        return
    asks = type(pool).__module__ in ASKING_POOLS
    if not message.channel.may_hand_over(message.delivery_tag, is_begun=not asks):
        forget_request(request)
        raise TaskRevokedError(request.id)


def forget_request(request: Any) -> None:
    """Make Celery's worker forget a request that does not begin, since its message went back."""
    logger.info("task %s not begun: its message went back", request, extra={"task": str(request)})
    state = sys.modules.get("celery.worker.state")
    if state is not None:
        state.task_ready(request)


def _as_read(args: Any, message: Any) -> Any:
    """Return a tracer's arguments with the body as it was read, where they hold it as it came."""
    if type(args) is tuple and len(args) == _TRACED and args[3] is message.body:
        name, task_id, request, _, content_type, _ = args
        if content_type == _JSON:
            return name, task_id, request, message.payload, None, None
    return args


def log_lost_result(name: str, task_id: str, error: Exception) -> None:
    """Log that a task was run, and the result backend did not take its result."""
    logger.error(
        "the result of %s[%s] is lost: the result backend did not take it (%s). What the task has"
        " committed stands, and its message is settled; whoever waits in get() waits until a"
        " timeout",
        name,
        task_id,
        " ".join(str(error).split()),
        extra={"task": name, "task_id": task_id, "why": str(error)},
    )


@lru_cache(maxsize=16)
def _failing_softly(target: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return target(*args, **kwargs)
        except MemoryError:
            raise
        except Exception as error:
            from billiard.einfo import ExceptionInfo

            if isinstance(error, getattr(current_app.backend, "connection_errors", ())):
                log_lost_result(args[0], args[1], error)
            else:
                logger.exception("task %s[%s] failed outside of its function", *args[:2])
            return 1, ExceptionInfo(), 0.0

    return run
