"""Check what kind of message something is, where one of a kind is asked for."""

from __future__ import annotations

from typing import Any, Final

#: What is done with a message of each kind.
_ASKED: Final = {
    "command": "A command is carried out by cqrs.execute(…), or sent by its delay().",
    "query": "A query is answered by cqrs.query(…).",
    "event": "An event is recorded by an aggregate: self.record(…).",
    "message": "A message is published: cqrs.publish(…).",
}


def check_kind(message: Any, kind: str) -> None:
    """Check that something is a message of a kind.

    Raises:
        TypeError: it is another kind of message, or none.
    """
    found = getattr(type(message), "__kind__", "")
    if found != kind:
        cls = type(message)
        what = f"the {found} {cls.__qualname__}" if found else f"a {cls.__qualname__}"
        raise TypeError(
            f"a {kind} was expected, an instance of a class below {kind.title()}; found {what}."
            f" {_ASKED.get(found, 'Make one of it.')}"
        )
