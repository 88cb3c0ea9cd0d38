"""The making of an aggregate that `get_or_create` did not find, and the check of what was made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..domain.aggregate import Aggregate
from ..domain.lifecycle import build
from ..store.stream import StreamName

A = TypeVar("A", bound=Aggregate)


def made(
    cls: type[A],
    id: str,
    make: Callable[[str], A] | None,
    *,
    stream_of: Callable[[type[Aggregate], str], StreamName],
) -> A:
    """Return a new aggregate of a class and an id.

    Args:
        cls: the aggregate's class.
        id: the aggregate's id.
        make: called with the id, and returns the aggregate; None to call the class.
        stream_of: returns the stream of an aggregate's class and id.

    Raises:
        TypeError: `make` did not return an instance of the class, or one of a class below it, whose
            events are in another stream.
        ValueError: `make` returned an aggregate with another id.
        AggregateNotConstructible: there is no `make`, and the class takes more than an id.
    """
    aggregate = build(cls, id) if make is None else make(id)
    call = f"get_or_create({getattr(cls, '__qualname__', cls)}, {id!r})"
    if not isinstance(aggregate, cls):
        raise TypeError(
            f"{call} made {aggregate!r}; expected `make` to return an instance of"
            f" {cls.__qualname__}"
        )
    if aggregate.id != id:
        raise ValueError(
            f"{call} made an aggregate with the id {aggregate.id!r}; expected `make` to use the id"
            " that it is given"
        )
    wanted, stream = stream_of(cls, id), stream_of(type(aggregate), id)
    if stream != wanted:
        raise TypeError(
            f"{call} made {aggregate!r}, whose events are in the stream {stream}; expected one of"
            f" {wanted}. Ask for {type(aggregate).__qualname__}"
        )
    return aggregate
