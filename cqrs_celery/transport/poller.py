"""Drive all channels of a connection: exchange with the queue, listen for wake-ups."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable
from queue import Empty
from typing import Any

from kombu.transport import redis as stock
from kombu.utils.eventio import READ

from .consumer.polling import POLL_S
from .waker import Waker

logger = logging.getLogger(__name__)


class Poller(stock.MultiChannelPoller):
    """A poller that listens as Kombu's own does for fanout, and takes from the queues each turn."""

    #: Kombu's event loop; None without one.
    hub: Any = None
    #: A pipe that makes the loop turn again; `call_soon` does not if it is called during a turn.
    _pipe: Waker | None = None
    #: True while the event loop, or `get`, listens to the pipe.
    _is_listening = False
    #: Monotonic time of the next turn that a timer will start.
    _alarm_at = 0.0

    def use_hub(self, hub: Any) -> None:
        """Use an event loop from now on.

        Args:
            hub: Kombu's event loop.
        """
        self.hub = hub
        self._close_pipe()
        end = self._open_pipe()
        self._is_listening = True
        hub.add_reader(end, self._on_pipe, end)

    def _open_pipe(self) -> int:
        """Make the pipe; return the end to read from."""
        self._pipe = Waker()
        return self._pipe.reading_end

    def _on_pipe(self, end: int) -> None:
        if self._pipe is not None and self._pipe.reading_end == end:
            self._pipe.hear()

    def turn_soon(self) -> None:
        """Make the event loop, or `get`, turn soon; callable from any thread, and in a turn."""
        # Another thread may close the connection, and with it the pipe.
        pipe = self._pipe
        if pipe is not None and self._is_listening and not pipe.has_rung:
            pipe.ring()

    def close(self) -> None:
        """Forget all channels and the event loop."""
        super().close()
        self._close_pipe()

    def _close_pipe(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with contextlib.suppress(Exception):
                if self.hub is not None:
                    self.hub.remove_reader(pipe.reading_end)
                else:
                    self.poller.unregister(pipe.reading_end)
            self._is_listening = False
            pipe.close()

    def on_poll_init(self, poller: Any) -> None:
        """Use the event loop's poller."""
        self.poller = poller

    def maybe_restore_messages(self) -> None:
        """Do nothing: leases take the place of a visibility timeout."""

    def maybe_refresh_binding_expiry(self) -> None:
        """Keep alive the bindings of queues that expire.

        Raises:
            OSError, redis.RedisError: the server does not answer. Kombu's own method ignores this;
                called by a timer, it would make the event loop wait repeatedly before a turn could
                fail.
        """
        for channel in list(self._channels):
            try:
                channel.maybe_refresh_binding_expiry()
            except channel.ResponseError:
                # For example from a full server, on which taking and settling still work.
                logger.warning(
                    "bindings of consumer %s not refreshed, tries again",
                    channel.consumer.name,
                    exc_info=True,
                )

    def maybe_check_subclient_health(self) -> None:
        """Drop connections on which redis-py misses answers; see also `check_subscription`."""
        for channel in list(self._channels):
            channel.check_pongs()

    def on_poll_start(self) -> int:
        """Exchange with the queue for every channel; return the number of deliveries."""
        delivered = 0
        for channel in list(self._channels):
            if channel.is_listening:
                channel.check_subscription()
                self._register_LISTEN(channel)
            delivered += channel.turn(is_loop=self.hub is not None)
        if self.hub is not None:
            self._turn_again(has_delivered=delivered > 0)
        return delivered

    def _turn_again(self, *, has_delivered: bool) -> None:
        """Schedule the loop's next turn: at once, or when the next exchange is due."""
        now = time.monotonic()
        due_at = min((channel.due_at() for channel in self._channels), default=math.inf)
        # After a delivery too: the pool may send it to a child only at the next turn.
        if has_delivered or due_at <= now:
            self.turn_soon()
        elif due_at < now + POLL_S and not now < self._alarm_at <= due_at:
            self._alarm_at = due_at
            self.hub.call_later(due_at - now, self.turn_soon)
            # The loop had chosen how long to wait before it came here, and must choose again.
            self.turn_soon()

    def on_readable(self, fileno: int) -> Any:
        """Read what came by pub/sub; it never contains a task message, unlike a list."""
        entry = self._fd_to_chan.get(fileno)
        if entry is None:
            return None
        channel, kind = entry
        result = channel.handlers[kind]()
        if self.hub is not None and channel.is_woken:
            # At once: otherwise the loop does its other work first.
            channel.turn(is_loop=True)
        return result

    def get(self, callback: Callable[..., Any], timeout: float | None = None) -> None:
        """Deliver one message, or wait for one (`drain_events` without an event loop).

        Raises:
            Empty: nothing came within the timeout; Kombu asks again if it has time left.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._in_protected_read = True
        if self._pipe is None:
            self.poller.register(self._open_pipe(), READ)
        try:
            # Without an event loop, no timer does this.
            self.maybe_refresh_binding_expiry()
            while True:
                if self.on_poll_start():
                    return
                # Set before the wait is computed: a settlement by another thread ends it early.
                self._is_listening = True
                now = time.monotonic()
                wait_s = min([POLL_S, *(c.due_at() - now for c in self._channels)])
                if deadline is not None:
                    wait_s = min(wait_s, deadline - now)
                wait_s = max(0.0, wait_s)
                has_read = False
                events = self.poller.poll(wait_s) or ()
                self._is_listening = self.hub is not None
                for fileno, event in events:
                    if self._pipe is not None and fileno == self._pipe.reading_end:
                        self._on_pipe(fileno)
                        continue
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
            # An event loop still listens, even if Celery has asked for a reply before it turns.
            self._is_listening = self.hub is not None
            while self.after_read:
                self.after_read.pop()()
