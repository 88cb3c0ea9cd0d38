"""A clock that nobody sets, and that counts the time for which the machine was suspended.

`time.monotonic` stands still meanwhile on Linux, and a lease goes on to its end.
"""

from __future__ import annotations

import time

_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def elapsed_s() -> float:
    """Return seconds since a fixed point in time, the same for all processes of this machine."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
