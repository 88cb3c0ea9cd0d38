"""The base of a domain's refusals: what an aggregate or a handler answers when a rule forbids it.

    class NotEnough(Refusal):
        wanted: int
        found: int

    raise NotEnough("5 wanted, 3 in stock", wanted=5, found=3)

A refusal is an outcome, no fault, so it is no CQRSError. It keeps its class, its text and its
fields on the way through a pool's processes (pickle) and through a result backend that writes JSON,
which keeps `args` alone.
"""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

#: The key in the last of `args` that marks a refusal to be made again from its fields.
FIELDS: Final = "cqrs_refusal"

#: What Kombu's JSON keeps as it is, besides what every JSON does.
_KEPT = (dt.datetime, dt.date, dt.time, Decimal, uuid.UUID)


def _rebuild(cls: type[Refusal], message: str, fields: dict[str, Any]) -> Refusal:
    # Without its __init__, which may take anything.
    refusal = cls.__new__(cls)
    Exception.__init__(refusal, message)
    refusal.__dict__.update(fields)
    return refusal


class _RefusalType(type):
    """The class of refusals' classes: makes one again from what Celery has kept of it."""

    # To type checkers, a refusal is made by its class's own __init__.
    if not TYPE_CHECKING:

        def __call__(cls, *args, **kwargs):
            if len(args) == 2 and isinstance(args[1], dict) and args[1].keys() == {FIELDS}:
                return _rebuild(cls, args[0], args[1][FIELDS])
            return super().__call__(*args, **kwargs)


class Refusal(Exception, metaclass=_RefusalType):
    """A command was refused by a rule of the domain. Derive your own refusals from it.

    Nothing is committed. A worker logs one line at the level info, without a traceback; the command
    is never tried again, and never a dead letter; its result raises the refusal. A subclass may
    have any `__init__`.

    Args:
        message: what was refused, and why; for people.
        fields: attributes of the refusal, for programs.

    Raises:
        TypeError: a field has the name of an attribute of Python's exceptions.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        for name in fields:
            if hasattr(Exception, name):
                raise TypeError(
                    f"{type(self).__qualname__} has a field {name!r}, which is an attribute of"
                    " every exception. Rename the field."
                )
        self.__dict__.update(fields)

    @property
    def args(self) -> tuple[Any, ...]:
        """The text and the fields, as a result backend keeps them."""
        fields = {name: _plain(value) for name, value in self._fields().items()}
        return str(self), {FIELDS: fields}

    @args.setter
    def args(self, value: tuple[Any, ...]) -> None:
        """Change the text, as code may that adds to any exception's."""
        vars(BaseException)["args"].__set__(self, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self._fields())

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("__")}


def _plain(value: Any) -> Any:
    """Return a field's value as Kombu can write it in JSON; what has no such form, as a text."""
    try:
        return msgspec.to_builtins(value, builtin_types=_KEPT, str_keys=True)
    except (TypeError, ValueError, OverflowError):
        return repr(value)
