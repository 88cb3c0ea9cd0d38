"""The ids that callers choose: idempotency keys, message ids, correlation ids."""

from __future__ import annotations

from typing import Any, Final

from ..store.refusals import check_text

#: The most characters of a key: stores look commands up in columns of limited length.
LONGEST_KEY: Final = 200


def checked_key(key: Any, *, what: str = "an idempotency key") -> str:
    """Return an idempotency key, or another id that the caller chose, if it is valid.

    Args:
        key: the key.
        what: names the key in errors.

    Raises:
        ValueError: the key is not a text, or is empty or too long.
        InvalidText: the key has a NUL, or half of a surrogate pair. It is a ValueError, too.
    """
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
        found = f"{len(key)} of them" if isinstance(key, str) else repr(key)
        raise ValueError(f"{what} is a text of 1 to {LONGEST_KEY} characters; found {found}")
    check_text(key, what)
    return key


def command_id_of(name: str, key: str) -> str:
    """Return the id of a command with an idempotency key; commands of two classes may share a key.

    Args:
        name: the command's full name, which has no colon.
        key: its key.
    """
    return f"{name}:{key}"
