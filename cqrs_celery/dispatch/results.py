"""What a command's handler returned: kept with its commit, sent as its result, and read again.

A value comes back in the type that the handler's return annotation declares:

    @command_handler(PriceOrder)
    def price_order(command: PriceOrder, session: Session) -> Decimal: ...

Without an annotation, it is what JSON makes of it; then it can be texts, numbers, lists and dicts.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from celery.result import AsyncResult

from ..errors import UnwritableMessage
from ..messages.sameness import difference

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class CommandResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a command that was carried out.

    `result["value"]` is `result.value`: as a mapping is what Celery hands on within a chain.

    Attributes:
        value: what its handler returned.
        position: the global position of the last event that it committed; None if it committed
            nothing.
        is_repeated: True if the command had committed before and its handler did not run.
    """

    value: Any = None
    position: int | None = None
    is_repeated: bool = False

    def __getitem__(self, name: str) -> Any:
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class Returned:
    """How what one handler returns is written, and read again.

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
        """Return a value as JSON from which the same is read.

        Args:
            value: what the handler returned.
            of: names the command in an error.

        Raises:
            UnwritableMessage: JSON has no form for it, or it would be read as something else.
        """
        if value is None:
            return "null"
        try:
            data = _encode(value)
            text = data.decode()
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise _unwritable(of, f"a value that JSON has no form for ({error})") from error
        found = difference(value, self.read(text))
        if found is None:
            return text
        where = f" at {found.path!r}" if found.path else ""
        raise _unwritable(
            of,
            f"{found.sent!r} of the type {type(found.sent).__name__}{where}, which would be read as"
            f" {found.back!r} of the type {type(found.back).__name__}",
        )

    def read(self, text: str) -> Any:
        """Return the value that was written; as plain values if its type has changed since."""
        try:
            return self._decode_typed(text)
        except msgspec.ValidationError:
            return _decode(text)

    def convert(self, plain: Any) -> Any:
        """Return the value that JSON has made plain values of; these if its type has changed."""
        if plain is None or self._type is Any:
            return plain
        try:
            return msgspec.convert(plain, self._type, builtin_types=(), str_keys=True)
        except msgspec.ValidationError:
            return plain


class CommandAsyncResult(AsyncResult):
    """A Celery AsyncResult of a command: what it gets is a `CommandResult`.

    Args:
        id: the task's.
        returned: how the handler's value is read; None where the handler is not known, and the
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
        plain: what the task returned.
        returned: how the handler's value is read; None to leave it plain.

    Returns:
        The result; what was given, if that is none, as from another version of this package.
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


def _unwritable(of: str, what: str) -> UnwritableMessage:
    return UnwritableMessage(
        f"the handler of command {of} returned a value that can't be its result: {what}. Nothing"
        " was committed. Return None or plain values, or annotate the handler with the type that"
        " it returns.",
        name="",
        version=0,
    )
