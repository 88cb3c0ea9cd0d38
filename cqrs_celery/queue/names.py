"""The names of queues and of their keys in Redis."""

from __future__ import annotations

from typing import Any

#: In no queue's name: what divides names within a key, and a queue from its priority step.
_DIVIDERS = ("\x1f", "\x06\x16")


def is_writable(text: str) -> bool:
    """Return whether the server can be told a text; half of a surrogate pair has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_queue_name(value: Any) -> bool:
    """Return whether a value that anybody may have chosen can name a queue."""
    return isinstance(value, str) and value != "" and _is_free(value) and is_writable(value)


def _is_free(name: str) -> bool:
    return not (name.startswith("cq:") or any(divider in name for divider in _DIVIDERS))


def checked(queue: str) -> str:
    """Return a queue's name, if it can be one.

    Raises:
        ValueError: it would collide with the queue's own keys.
    """
    if not _is_free(queue):
        raise ValueError(
            f"{queue!r} cannot name a queue: names beginning with cq: are the queue's own keys, and"
            " \\x1f and \\x06\\x16 divide names within them. Choose another name"
        )
    return queue


def key_of(prefix: str, name: str) -> str:
    """Return the full name of one of the keys of the queues under a prefix."""
    return f"{prefix}cq:{name}"


def literally(text: str) -> str:
    """Return a text as it stands in a pattern of SCAN."""
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)
