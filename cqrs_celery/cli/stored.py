"""Read what lies in a queue, whoever put it there."""

from __future__ import annotations

import json
from typing import Any

from ..nesting import READ_LEVELS, is_too_deep
from ..transport.envelope import split


def parsed(text: bytes | str) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: it is none, or is nested deeper than a worker reads.
    """
    content = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if is_too_deep(content):
        raise ValueError(f"it is nested deeper than {READ_LEVELS} levels")
    return json.loads(content)


def head_of(payload: bytes, body: bytes) -> dict[str, Any]:
    """Return a message's head; what can't be read of it, or is of another type, is empty."""
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
