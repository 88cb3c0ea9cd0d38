"""A clock that nobody can set, and that counts the time during which the machine is suspended.

On Linux `time.monotonic` stops while the machine is suspended, but a lease still runs out.
"""

from __future__ import annotations

import time

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_s() -> float:
    """Return seconds since a fixed point in time, the same for all processes of this machine."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
