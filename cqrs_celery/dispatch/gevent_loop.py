"""An event loop as one greenlet among others.

Greenlets of one thread share asyncio's mark of the loop that runs there. The mark is taken away as
often as the loop's greenlet gives way, and put back when it goes on: other greenlets are not
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
        """Take the mark away; the hub calls this when the greenlet gives way."""
        self._own = _get_running_loop()
        _set_running_loop(self._others)

    def switch(self, *args: Any) -> Any:
        """Go on, with the mark."""
        self._put_back()
        return super().switch(*args)

    def throw(self, *args: Any) -> Any:
        """Go on with an exception, with the mark."""
        self._put_back()
        return super().throw(*args)

    def _put_back(self) -> None:
        self._others = _get_running_loop()
        _set_running_loop(self._own)
