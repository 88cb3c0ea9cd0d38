"""Refuse queues whose keys a later release has given a form that this one does not know."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedFormat
from ..queue.names import key_of
from ..queue.upkeep import FORMAT


def check_format(client: Any, prefix: str, *, where: str) -> None:
    """Check that the form of the keys is one that this release knows; one round trip.

    Args:
        client: a redis client.
        prefix: in front of every key.
        where: names the broker in the error, without credentials.

    Raises:
        UnsupportedFormat: it is of a later release.
    """
    found = int(client.get(key_of(prefix, "format")) or 1)
    if found > FORMAT:
        raise UnsupportedFormat(unsupported(found, where), found=found, known=FORMAT)


def unsupported(found: int, where: str = "the broker") -> str:
    """Return a text about a form of the keys that is not known.

    Args:
        found: its number.
        where: names the broker.
    """
    return (
        f"the queues at {where} are in format {found}, and this release of cqrs-celery knows"
        f" formats 1 to {FORMAT}: a later release has upgraded them. Nothing is taken or published."
        " Install that release here too, or use another database or global_keyprefix"
    )
