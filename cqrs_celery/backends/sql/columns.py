"""The types of the tables' columns: the common ones, with the variants of each engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import BigInteger, DateTime, Text

from .backends import sql_backends
from .column_types import ColumnTypes

_OWN: Final = {backend.name: backend.column_types() for backend in sql_backends()}


def _varied(common: Any, own: Callable[[ColumnTypes], Callable[[], Any] | None]) -> Any:
    """Return a common type with a variant for each engine that has its own."""
    for name, types in _OWN.items():
        make = own(types)
        if make is not None:
            common = common.with_variant(make(), name)
    return common


def _with_length(make: Callable[[int], Any] | None, length: int) -> Callable[[], Any] | None:
    return None if make is None else lambda: make(length)


def key_type(length: int) -> Any:
    """Return the type of a text that is unique.

    Args:
        length: its greatest, for engines that need one.
    """
    return _varied(Text(), lambda own: _with_length(own.key, length))


def id_type(length: int) -> Any:
    """Return the type of a text that identifies and has no index.

    Args:
        length: its greatest, for engines that need one.
    """
    return _varied(Text(), lambda own: _with_length(own.id, length))


def hash_type() -> Any:
    """Return the type of a stream's key, which is a hash on some engines."""
    return _varied(Text(), lambda own: own.hash)


def name_type() -> Any:
    """Return the type of a part of a name, of any length."""
    return _varied(Text(), lambda own: own.name)


def text_type() -> Any:
    """Return the type of any other text."""
    return _varied(Text(), lambda own: own.text)


def json_type() -> Any:
    """Return the type of JSON, which is a text where an engine has no type for it."""
    return _varied(Text(), lambda own: own.json)


def time_type() -> Any:
    """Return the type of a time, to the microsecond."""
    return _varied(DateTime(timezone=True), lambda own: own.time)


def number_type() -> Any:
    """Return the type of a number that the database gives."""
    return _varied(BigInteger(), lambda own: own.number)
