"""Listen for wake-ups and broadcasts: the part of a channel that owns a pub/sub connection."""

from __future__ import annotations

import logging
import time
from typing import Any

from kombu.transport import redis as stock

from ..transport import envelope
from .consuming import ConsumingChannel

logger = logging.getLogger(__name__)

#: Seconds of silence on the pub/sub connection after which it is pinged.
QUIET_S = 10.0

#: Seconds to wait for the answer to that ping.
PONG_S = 3.0

#: The wake-up that reports paused queues, in place of a queue's name.
PAUSED = b"\x1fpaused"


class WakingChannel(ConsumingChannel):
    """A channel that is woken by pub/sub when a queue has a message for it.

    Kombu's broadcasts, for remote control and events, come by the same connection.
    """

    def __init__(self, connection: Any, *args: Any, **kwargs: Any) -> None:
        #: monotonic time of the last message by pub/sub, or of the subscription
        self._heard_at = 0.0
        #: monotonic time of the unanswered ping on the pub/sub connection; None without one
        self._pinged_at: float | None = None
        super().__init__(connection, *args, **kwargs)

    def check_subscription(self) -> None:
        """Ping a pub/sub connection that has long been silent; reconnect if it does not answer.

        A connection that has died silently looks like one on which nothing happens.
        """
        now = time.monotonic()
        interval_s = self.health_check_interval
        if not interval_s or not self._in_listen or now - self._heard_at < min(QUIET_S, interval_s):
            return
        client = self.subclient
        connection = client.connection
        if self._pinged_at is None:
            self._pinged_at = now
            client.health_check_response_counter += 1
            connection.send_command("PING", client.HEALTH_CHECK_MESSAGE, check_health=False)
        elif now - self._pinged_at >= PONG_S and not connection.can_read(timeout=0):
            self._give_up_subscription("a ping")

    def check_pongs(self) -> None:
        """Reconnect if redis-py has missed the answers to as many pings as Kombu allows."""
        client = self.__dict__.get("subclient")
        if client is None:
            return
        missed = client.health_check_response_counter
        if missed >= stock.SUBCLIENT_MAX_MISSED_HEALTH_CHECKS:
            self._give_up_subscription(f"{missed} pings")

    def _give_up_subscription(self, unanswered: str) -> None:
        logger.warning(
            "pub/sub connection without an answer to %s, connecting anew", unanswered,
            extra={"silent_s": round(time.monotonic() - self._heard_at, 1)},
        )  # fmt: skip
        self._in_listen = None
        client = self.subclient
        client.health_check_response_counter = 0
        if client.connection is not None:
            client.connection.disconnect()

    def _subscribe(self) -> None:
        self._heard_at, self._pinged_at = time.monotonic(), None
        if "subclient" in self.__dict__:
            self.subclient.health_check_response_counter = 0
        super()._subscribe()
        if self.active_queues:
            client = self.subclient
            if client.connection._sock is None:
                client.connection.connect()
            self._in_listen = client.connection
            client.subscribe(self._wake_channel)

    @property
    def _wake_channel(self) -> str:
        # A client with a key prefix adds it by itself.
        return f"cq:wake:{self.consumer.name}"

    def _receive_one(self, client: Any) -> Any:
        try:
            response = client.parse_response()
        except self.connection_errors:
            self._in_listen = None
            raise
        self._heard_at, self._pinged_at = time.monotonic(), None
        if not isinstance(response, (list, tuple)):
            return None
        kind, name = stock.bytes_to_str(response[0]), stock.bytes_to_str(response[1])
        if kind in ("subscribe", "message") and "cq:wake:" in str(name):
            # At the confirmation too: a message published before it has woken nobody.
            self.polling.should_take = True
            if response[2] == PAUSED or (kind == "subscribe" and self.consumer.deliveries):
                self.consumer.ask_paused()
            return None
        return self._receive_fanout(client, response)

    def _receive_fanout(self, client: Any, response: Any) -> Any:
        payload = self._handle_message(client, response)
        kind = stock.bytes_to_str(payload["type"])
        if not kind.endswith("message") or not payload["data"]:
            # Kombu's own method also returns from `drain_events` when a subscription is confirmed.
            return kind.endswith("subscribe")
        name = stock.bytes_to_str(payload["channel"])
        if name[0] == "/":
            _, _, name = name.partition(".")
        try:
            message = stock.loads(stock.bytes_to_str(payload["data"]))
            envelope.check_broadcast(message)
        except (TypeError, ValueError, RecursionError):
            logger.warning(
                "unreadable fanout message of channel %s dropped", name, extra={"channel": name}
            )
            return None
        return self._deliver_fanout_message(message, name.split("/", 1)[0])

    def _poll_error(self, type: str, **options: Any) -> Any:
        return self.subclient.parse_response()
