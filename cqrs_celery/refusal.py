"""The base of a domain's refusals: what an aggregate or a handler raises if a rule forbids it.

    class NotEnough(Refusal):
        wanted: int
        found: int

    raise NotEnough("5 wanted, 3 in stock", wanted=5, found=3)

A refusal is an outcome and not a fault, so it is no CQRSError. It keeps its class, its text and its
fields when it passes between pool processes (by pickle), and in a result backend that writes JSON,
which keeps only `args`.
"""

from __future__ import annotations

import datetime as dt
import difflib
import uuid
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import msgspec

from .messages.markers import has_marked_object
from .mutability import annotated_names

#: The key in the last item of `args` that marks a refusal to be rebuilt from its fields.
FIELDS: Final = "cqrs_refusal"

#: Types that Kombu's JSON preserves, in addition to those of standard JSON.
_KEPT = (dt.datetime, dt.date, dt.time, Decimal, uuid.UUID)


def _rebuild(cls: type[Refusal], message: str, fields: dict[str, Any]) -> Refusal:
    # Not by its __init__, which may take any arguments.
    refusal = cls.__new__(cls)
    Exception.__init__(refusal, message)
    refusal.__dict__.update(fields)
    return refusal


class _RefusalType(type):
    """The metaclass of refusals: it rebuilds a refusal from the `args` that Celery has kept."""

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
        super().__init__(name, bases, namespace)
        if namespace.get("__slots__"):
            raise TypeError(
                f"{cls.__qualname__} has __slots__, whose values would be lost on the way to the"
                " command's sender. Remove them."
            )

    # Type checkers should see the __init__ of the refusal's own class instead.
    if not TYPE_CHECKING:

        def __call__(cls, *args, **kwargs):
            if len(args) == 2 and isinstance(args[1], dict) and args[1].keys() == {FIELDS}:
                return _rebuild(cls, args[0], args[1][FIELDS])
            return super().__call__(*args, **kwargs)


class Refusal(Exception, metaclass=_RefusalType):
    """A command was refused by a rule of the domain. Derive your own refusals from it.

    Nothing is committed. A worker logs one line at the level info, without a traceback. The command
    is never tried again and never becomes a dead letter; its result raises the refusal. A subclass
    may have any `__init__`.

    Args:
        message: what was refused, and why; for people.
        fields: attributes of the refusal, for programs. If the class annotates its fields, the
            names must be exactly those; a field with a default may be left out.

    Raises:
        TypeError: a field is missing or unknown; a field has the name of an attribute of Python's
            exceptions; or the class has `__slots__`.
    """

    def __init__(self, message: str = "", /, **fields: Any) -> None:
        super().__init__(message)
        for name in fields:
            if hasattr(Exception, name):
                raise TypeError(
                    f"{type(self).__qualname__} has a field {name!r}, which is an attribute of"
                    " every exception. Rename the field."
                )
        if type(self).__init__ is Refusal.__init__:
            _check_fields(type(self), fields)
        self.__dict__.update(fields)

    @property
    def args(self) -> tuple[Any, ...]:
        """The text and the fields, in the form that a result backend keeps."""
        fields = {name: _plain(value) for name, value in self._fields().items()}
        return self._message(), {FIELDS: fields}

    @args.setter
    def args(self, value: tuple[Any, ...]) -> None:
        """Change the text, for code that extends the text of any exception."""
        vars(BaseException)["args"].__set__(self, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._message(), self._fields())

    def _message(self) -> str:
        # Not str(self): a subclass may define its own __str__.
        return Exception.__str__(self)

    def _fields(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("__")}


def _check_fields(cls: type[Refusal], fields: Mapping[str, Any]) -> None:
    own = [base for base in cls.__mro__ if base not in Refusal.__mro__]
    names = frozenset().union(*(annotated_names(one, with_class_variables=False) for one in own))
    declared = sorted(name for name in names if not name.startswith("_"))
    if not declared:
        return
    for name in fields:
        if name not in declared:
            close = difflib.get_close_matches(name, declared, n=1)
            raise TypeError(
                f"{cls.__qualname__} has no field {name!r}; it has {', '.join(declared)}."
                + (f" Did you mean {close[0]!r}?" if close else " Annotate it in the class.")
            )
    missing = [name for name in declared if name not in fields and not hasattr(cls, name)]
    if missing:
        raise TypeError(
            f"{cls.__qualname__} was made without {', '.join(missing)}, which its class declares."
            f" Pass {missing[0]}=…, or give the field a default in the class."
        )


def _plain(value: Any) -> Any:
    """Return a field's value in a form that Kombu can write as JSON, or else its repr."""
    try:
        plain = msgspec.to_builtins(value, builtin_types=_KEPT, str_keys=True)
        return repr(value) if has_marked_object(msgspec.json.encode(plain)) else plain
    except (TypeError, ValueError, OverflowError):
        return repr(value)
