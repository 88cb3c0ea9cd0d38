"""The names of queues and of their keys in Redis."""

from __future__ import annotations

from typing import Any

#: Separators that no queue's name may contain: the first separates names within a key, the second a
#: queue from its priority step.
_DIVIDERS = ("\x1f", "\x06\x16")


def is_writable(text: str) -> bool:
    """Return whether a text can be sent to the server; half of a surrogate pair can't be encoded.

    Args:
        text: any text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_queue_name(value: Any) -> bool:
    """Return whether a value from an untrusted source can name a queue.

    Args:
        value: anything; only a text can name a queue.
    """
    return isinstance(value, str) and value != "" and _is_free(value) and is_writable(value)


def _is_free(name: str) -> bool:
    return not (name.startswith("cq:") or any(divider in name for divider in _DIVIDERS))


def checked(queue: str) -> str:
    """Return a queue's name unchanged if it is valid.

    Args:
        queue: the name.

    Raises:
        ValueError: the name would collide with the queue's own keys.
    """
    if not _is_free(queue):
        raise ValueError(
            f"{queue!r} cannot name a queue: names beginning with cq: are the queue's own keys, and"
            " \\x1f and \\x06\\x16 separate names within them. Choose another name"
        )
    return queue


def key_of(prefix: str, name: str) -> str:
    """Return the full name of one of the queue's own keys.

    Args:
        prefix: the virtual host's key prefix.
        name: the key's name within it.
    """
    return f"{prefix}cq:{name}"


def literally(text: str) -> str:
    """Return a text escaped for a SCAN pattern, so that it matches only itself.

    Args:
        text: any text.
    """
    return "".join(f"\\{char}" if char in "*?[]^-\\" else char for char in text)
