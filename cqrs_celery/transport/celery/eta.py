"""Show a task the time that it waited for, as `request.eta`.

The queue has waited for it, so a worker must not find it in the message: it would wait a second
time. Once Celery's worker has read the message, it is put where the task finds it.
"""

from __future__ import annotations

import sys
from typing import Any

from ...transport import envelope


def show_etas() -> None:
    """Do so in this process's worker; nothing happens where Celery is not imported."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.task_received.connect(_show)


def _show(request: Any = None, **_: Any) -> None:
    waited = request.request_dict.get(envelope.WAITED_HEADER)
    if waited:
        # The worker's own decision, `request.eta`, was made from the message before this.
        request.request_dict.setdefault("eta", waited)
