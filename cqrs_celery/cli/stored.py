"""Read messages in a queue that any program may have put there."""

from __future__ import annotations

import json
from typing import Any

from ..nesting import READ_LEVELS, is_too_deep
from ..transport.envelope import split


def parsed(text: bytes | str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested deeper than a worker reads.
    """
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if is_too_deep(content):
        raise ValueError(f"it is nested deeper than {READ_LEVELS} levels")
    return json.loads(content)


def head_of(payload: bytes, body: bytes) -> dict[str, Any]:
    """Return a message's head; parts that can't be read, or have another type, are empty."""
    try:
        head = parsed(split(payload, body)[0])
    except ValueError:
        head = None
    if not isinstance(head, dict):
        head = {}
    for name in ("headers", "properties"):
        if not isinstance(head.get(name), dict):
            head[name] = {}
    return head
