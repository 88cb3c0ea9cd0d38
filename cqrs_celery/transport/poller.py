"""Turn the loop of all channels of a connection: exchange with the queue, listen for wake-ups."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport import redis as stock

#: Seconds between two looks at the queues when nobody wakes us: a lost wake-up costs this much.
POLL_S = 1.0


class Poller(stock.MultiChannelPoller):
    """Poll what stock polls for fanout, and take from the queues on each turn."""

    #: Kombu's event loop, where one turns.
    hub: Any = None
    #: A pipe that makes it turn: `call_soon` does not, from a callback of the turn itself.
    _pipe: tuple[int, int] | None = None

    def use_hub(self, hub: Any) -> None:
        """Turn with an event loop."""
        self.hub = hub
        self._close_pipe()
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        hub.add_reader(self._pipe[0], self._on_pipe, self._pipe[0])

    def _on_pipe(self, end: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(end, 4096)

    def turn_soon(self) -> None:
        """Make the event loop turn; from any thread, and from within a turn."""
        if self._pipe is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._pipe[1], b".")

    def close(self) -> None:
        """Forget all channels and the event loop."""
        super().close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(Exception):
                self.hub.remove_reader(pipe[0])
            for end in pipe:
                os.close(end)

    def on_poll_init(self, poller: Any) -> None:
        """Use the event loop's poller."""
        self.poller = poller

    def maybe_restore_messages(self) -> None:
        """Do nothing: there is no visibility timeout, leases take its place."""

    def on_poll_start(self) -> int:
        """Exchange with the queue for every channel; returns the number of deliveries."""
        delivered = 0
        for channel in list(self._channels):
            if channel.is_listening:
                self._register_LISTEN(channel)
            delivered += channel.turn(is_loop=self.hub is not None)
        # After a delivery too: a pool may have to send it to a child, at its own next turn.
        if self.hub is not None and (delivered or any(c.wants_turn for c in self._channels)):
            self.turn_soon()
        return delivered

    def on_readable(self, fileno: int) -> Any:
        """Read what came by pub/sub; unlike a list, it never holds a task message."""
        entry = self._fd_to_chan.get(fileno)
        if entry is not None:
            channel, kind = entry
            return channel.handlers[kind]()

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Deliver one message, or wait for one (`drain_events` without an event loop).

        Raises:
            Empty: nothing came in the time; Kombu asks again where it has time left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._in_protected_read = True
        try:
            while True:
                if self.on_poll_start():
                    return
                wait_s = min((c.until_turn() for c in self._channels), default=POLL_S)
                if deadline is not None:
                    wait_s = min(wait_s, max(0.0, deadline - time.monotonic()))
                has_read = False
                for fileno, event in self.poller.poll(wait_s) or ():
                    with contextlib.suppress(Empty):
                        result = self.handle_event(fileno, event)
                        has_read = has_read or bool(result and result[0])
                if has_read:
                    return
                if deadline is not None and time.monotonic() >= deadline:
                    if not self.on_poll_start():
                        raise Empty
                    return
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()
