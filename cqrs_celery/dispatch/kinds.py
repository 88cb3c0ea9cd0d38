"""Check the kind of a message that is passed to a method."""

from __future__ import annotations

from typing import Any, Final

#: The right way to use a message of each kind, for errors.
_ASKED: Final = {
    "command": "A command is carried out by cqrs.execute(…), or sent by its delay().",
    "query": "A query is answered by cqrs.query(…).",
    "event": "An event is recorded by an aggregate: self.record(…).",
    "message": "A message is published: cqrs.publish(…).",
}


def check_kind(message: Any, kind: str) -> None:
    """Check that an object is a message of a kind.

    Raises:
        TypeError: it is a message of another kind, or not a message.
    """
    found = getattr(type(message), "__kind__", "")
    if found != kind:
        cls = type(message)
        what = f"the {found} {cls.__qualname__}" if found else f"a {cls.__qualname__}"
        raise TypeError(
            f"a {kind} was expected, an instance of a class below {kind.title()}; found {what}."
            f" {_ASKED.get(found, 'Make one of it.')}"
        )
