"""An event loop as one greenlet among others.

The greenlets of a thread share asyncio's record of the running loop. The record is removed whenever
the loop's greenlet is switched out, and restored when it resumes, so that other greenlets are not
mistaken for coroutines.
"""

from __future__ import annotations

from asyncio import _get_running_loop, _set_running_loop
from asyncio.events import AbstractEventLoop
from typing import Any

from gevent import Greenlet


class LoopGreenlet(Greenlet):
    """The greenlet of an event loop."""

    _own: AbstractEventLoop | None = None
    _others: AbstractEventLoop | None = None

    def switch_out(self) -> None:
        """Remove the record; the hub calls this when it switches the greenlet out."""
        self._own = _get_running_loop()
        _set_running_loop(self._others)

    def switch(self, *args: Any) -> Any:
        """Restore the record, and resume."""
        self._put_back()
        return super().switch(*args)

    def throw(self, *args: Any) -> Any:
        """Restore the record, and resume with an exception."""
        self._put_back()
        return super().throw(*args)

    def _put_back(self) -> None:
        self._others = _get_running_loop()
        _set_running_loop(self._own)
