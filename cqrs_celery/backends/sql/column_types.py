"""The column types that an engine has its own of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class ColumnTypes(NamedTuple):
    """What makes the types that an engine has its own of; None where the common one serves.

    Attributes:
        key: of a text that is unique; takes its greatest length.
        id: of a text that identifies and has no index; takes its greatest length.
        hash: of a stream's key.
        name: of a part of a name, of any length.
        text: of any other text.
        json: of JSON, which a store gives as a text.
        time: of a time, to the microsecond.
        number: of a number that the database gives.
    """

    key: Callable[[int], Any] | None = None
    id: Callable[[int], Any] | None = None
    hash: Callable[[], Any] | None = None
    name: Callable[[], Any] | None = None
    text: Callable[[], Any] | None = None
    json: Callable[[], Any] | None = None
    time: Callable[[], Any] | None = None
    number: Callable[[], Any] | None = None
