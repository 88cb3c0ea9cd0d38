"""Compare messages as they would be read, with those that a test expects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..messages.codec import codec_of
from ..messages.message import Message
from ..messages.sameness import difference

M = TypeVar("M", bound=Message)


def read_again(message: M) -> M:
    """Return what would be read of a message that was stored or sent.

    Raises:
        UnwritableMessage: it could not have been.
    """
    read: M = codec_of(type(message)).write(message)[1]
    return read


def are_same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Return whether what was read is what was expected, in this order.

    Args:
        found: messages, as they were read.
        expected: messages; what is none is compared as it is.

    Raises:
        UnwritableMessage: an expected message could not have been stored or sent.
    """
    wanted = [read_again(one) if isinstance(one, Message) else one for one in expected]
    return len(found) == len(wanted) and all(
        _is_same(one, other) for one, other in zip(found, wanted, strict=True)
    )


def _is_same(found: Any, wanted: Any) -> bool:
    if not isinstance(wanted, Message):
        # As a test says by its own means, such as an approximate number.
        try:
            if found == wanted:
                return True
        except Exception:  # noqa: BLE001  a comparison may raise anything
            return False
    return difference(found, wanted) is None
