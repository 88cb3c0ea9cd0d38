"""The return values of commands' handlers: kept with the commit, sent as results, and read again.

A value comes back in the type that the handler's return annotation declares:

    @command_handler(PriceOrder)
    def price_order(command: PriceOrder, session: Session) -> Decimal: ...

A value of another type is refused before anything is committed. Without an annotation, the value
is read as plain JSON, so it may consist of texts, numbers, lists and dicts.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery.result import AsyncResult

from ..errors import HandlerSignatureError, UnwritableMessage
from ..messages.forms import ACCEPTED, formless_part
from ..messages.markers import MARKED, has_marked_object
from ..messages.registry import where
from ..messages.results import CommandResult as CommandResult
from ..messages.sameness import difference

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Returned:
    """The writer and reader of one handler's return values.

    Args:
        function: the handler.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._type: Any = _returned_by(function)
        try:
            self._decode_typed = msgspec.json.Decoder(self._type).decode
        except TypeError:
            self._type, self._decode_typed = Any, _decode

    def write(self, value: Any, *, of: str) -> str:
        """Return a value as JSON from which an equal value is read.

        Args:
            value: the value that the handler returned.
            of: names the command in errors.

        Raises:
            UnwritableMessage: JSON has no form for the value, it has another type than the handler
                declares, or it would be read back as another value.
        """
        if value is None:
            return "null"
        try:
            data = _encode(value)
            text = data.decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _unwritable(of, f"a value that JSON has no form for ({error})") from error
        try:
            back = self._decode_typed(text)
        except msgspec.ValidationError as error:
            raise _unwritable(
                of, f"{_shown(value)}, which is not of the type that it declares: {error}"
            ) from error
        found = difference(value, back)
        if found is None:
            if has_marked_object(data):
                raise _unwritable(of, MARKED)
            return text
        place = f" at {found.path!r}" if found.path else ""
        raise _unwritable(
            of,
            f"{_shown(found.sent)}{place}, which would be read as {_shown(found.back)}",
        )

    def read(self, text: str) -> Any:
        """Return the value that was written, or plain values if its type has changed since."""
        try:
            return self._decode_typed(text)
        except msgspec.ValidationError:
            return _decode(text)

    def convert(self, plain: Any) -> Any:
        """Return the typed value of plain values, or these if its type has changed since."""
        if plain is None or self._type is Any:
            return plain
        try:
            return msgspec.convert(plain, self._type, builtin_types=(), str_keys=True)
        except msgspec.ValidationError:
            return plain


class CommandAsyncResult(AsyncResult):
    """A Celery AsyncResult of a command, whose `get` returns a `CommandResult`.

    Args:
        id: the task's id.
        returned: the reader of the handler's values; None if the handler is not known. Then the
            value stays plain.
        options: Celery's own.
    """

    def __init__(self, id: str, *, returned: Returned | None = None, **options: Any) -> None:
        super().__init__(id, **options)
        self._returned = returned

    def _set_cache(self, d: dict[str, Any]) -> Any:
        if d.get("status") == "SUCCESS":
            d = {**d, "result": result_from(d.get("result"), self._returned)}
        return super()._set_cache(d)


def result_from(plain: Any, returned: Returned | None) -> Any:
    """Return the CommandResult that a command's task has returned as plain values.

    Args:
        plain: the task's return value.
        returned: the reader of the handler's values; None to leave the value plain.

    Returns:
        The result. If `plain` does not have the form of one, as from another version of this
        package, it is returned unchanged.
    """
    if not isinstance(plain, Mapping) or set(plain) != set(CommandResult.__struct_fields__):
        return plain
    value = plain["value"] if returned is None else returned.convert(plain["value"])
    return CommandResult(value=value, position=plain["position"], is_repeated=plain["is_repeated"])


def _returned_by(function: Callable[..., Any]) -> Any:
    try:
        return typing.get_type_hints(function, include_extras=True).get("return", Any)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def check_returned(function: Callable[..., Any]) -> None:
    """Check that values of a handler's return annotation can be written as JSON.

    A type that is not defined yet is not checked.

    Raises:
        HandlerSignatureError: JSON has no form for the annotated type.
    """
    declared = _returned_by(function)
    if declared in (typing.NoReturn, typing.Never):
        return
    try:
        formless, why = formless_part(declared), "JSON has no form for it"
    except TypeError as error:
        formless, why = declared, str(error).splitlines()[0]
    if formless is not None:
        raise HandlerSignatureError(
            f"{where(function)} returns {getattr(formless, '__qualname__', formless)}, says its"
            f" annotation, and a command's result is written as JSON: {why}. Return None, or one of"
            f" {ACCEPTED}."
        )


def _shown(value: Any) -> str:
    return f"{value!r:.200} of the type {type(value).__name__}"


def _unwritable(of: str, what: str) -> UnwritableMessage:
    return UnwritableMessage(
        f"the handler of command {of} returned a value that can't be its result: {what}. Nothing"
        " was committed. Return None or plain values, or annotate the handler with the type that"
        " it returns.",
        name="",
        version=0,
    )
