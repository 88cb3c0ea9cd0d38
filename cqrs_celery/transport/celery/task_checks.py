"""Check the types that Celery's worker assumes in a task's message, before the worker sees it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from celery.exceptions import InvalidTaskError
from kombu.exceptions import KombuError

from ...nesting import READ_LEVELS, is_too_deep

#: The content type of JSON, whose bodies are checked more closely.
JSON = "application/json"

#: The most years that a message may make a worker wait. With about three hundred years, Python's
#: timers raise an error, and Celery's timer ends the worker.
_YEARS_AHEAD = 100

_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Signatures = list[dict[str, Any]]


class _Options(msgspec.Struct):
    """The types of a task's options, in its body or, by Celery's rules, in its headers."""

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
    """The types of a body in the first protocol, which contains what later became headers."""

    args: list[Any] | None = None
    kwargs: dict[str, Any] | None = None
    taskset: str | None = None
    utc: bool | None = None


#: Names that Celery uses on a task's request; the message's headers would overwrite them.
_RESERVED = frozenset(
    (
        "as_execution_options", "clear", "execution_options", "get", "update",
        "_children", "_get_custom_headers", "_protected",
    )
)  # fmt: skip


#: Headers that hold an id.
_IDS = frozenset(("id", "root_id", "parent_id", "group"))

#: Headers that are only displayed.
_REPRESENTATIONS = frozenset(("argsrepr", "kwargsrepr", "origin"))


def check_task(message: Any) -> None:
    """Check a message that claims to be a task.

    A message that can't be decoded, or is no task, is left to Celery.

    Args:
        message: Kombu's message.

    Raises:
        ValueError: a part has another type than Celery assumes; the text says which.
        InvalidTaskError: the arguments, the keyword arguments or the options have another type.
    """
    headers, is_json = message.headers, message.content_type == JSON
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
        # Try again, after converting what Celery's own worker accepts in other types.
        _write_out(headers)
        found = msgspec.convert(headers, types)
    names = f"{found.task}{found.id}{found.root_id}{found.parent_id}{found.group}{found.shadow}"
    if not names.isascii():
        # Half of a surrogate pair is valid in JSON, but can't be encoded.
        names.encode()
    if found.eta and found.eta[:4].isdecimal():
        last = datetime.now(UTC).year + _YEARS_AHEAD
        if int(found.eta[:4]) > last:
            raise ValueError(f"its eta is {found.eta[:40]!r}; accepted: up to the year {last}")


def _write_out(headers: dict[str, Any]) -> None:
    """Convert values that Celery accepts in other types to those that the rest of it assumes.

    An id, or the name of a group, may be an integer; `ignore_result` may be any true or false
    value; the representations of arguments may have any type.
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
    """Move the sender's headers that would overwrite names of a task's request.

    They stay available in the request's `headers`, as Celery's sender headers are, but replace none
    of its methods.
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
        # Nearly every sender writes it this way.
        return
    if not (
        isinstance(args, list | tuple)
        and isinstance(kwargs, dict)
        and isinstance(options, dict | None)
    ):
        raise InvalidTaskError("a body was expected as [arguments, keyword arguments, options]")
    # Other serializers may produce equivalent types.
    if not options or not is_json:
        return
    try:
        msgspec.convert(options, _Options)
    except msgspec.ValidationError as error:
        raise InvalidTaskError(f"the options in its body: {error}") from error
    if not options.keys() <= _OPTIONS:
        from celery.app.task import Context

        # Celery overwrites the request with the options; they must not change its id, for example.
        taken = [name for name in options.keys() - _OPTIONS if hasattr(Context, name)]
        if taken:
            raise InvalidTaskError(f"its body has options that are not the sender's: {taken}")


_OPTIONS = frozenset(_Options.__struct_fields__)

#: The options that Celery sends if a task has none.
_NO_OPTIONS = dict.fromkeys(_Options.__struct_fields__)
