"""Show a task the time that it waited for, as `request.eta`.

The queue has already waited for that time. If the worker found it in the message, it would wait a
second time. So it is put into the request only after Celery's worker has read the message.
"""

from __future__ import annotations

import sys
from typing import Any

from ...transport import envelope


def show_etas() -> None:
    """Show them in this process's worker; nothing happens if Celery is not imported."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.task_received.connect(_show)


def _show(request: Any = None, **_: Any) -> None:
    waited = request.request_dict.get(envelope.WAITED_HEADER)
    if waited:
        # The worker has computed its own `request.eta` from the message before this.
        request.request_dict.setdefault("eta", waited)
