"""Refuse queues whose keys have a format that only a later release knows."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedFormat
from ..queue.names import key_of
from ..queue.upkeep import FORMAT


def check_format(client: Any, prefix: str, *, where: str) -> None:
    """Check that this release knows the format of the keys; one round trip.

    Args:
        client: a redis client.
        prefix: the prefix of every key.
        where: the broker's address for the error, without credentials.

    Raises:
        UnsupportedFormat: the format is that of a later release.
    """
    found = int(client.get(key_of(prefix, "format")) or 1)
    if found > FORMAT:
        raise UnsupportedFormat(unsupported(found, where), found=found, known=FORMAT)


def unsupported(found: int, where: str = "the broker") -> str:
    """Return the text of the error about an unknown format of the keys.

    Args:
        found: the format's number.
        where: the broker's address, without credentials.
    """
    return (
        f"the queues at {where} are in format {found}, and this release of cqrs-celery knows"
        f" formats 1 to {FORMAT}: a later release has upgraded them. Nothing is taken or published."
        " Install that release here too, or use another database or global_keyprefix"
    )
