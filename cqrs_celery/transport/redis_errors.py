"""Translate the server's refusals: try again elsewhere, try again later, or give up.

A server that is a replica, is loading, or has lost its master answers with an error. To the user of
the connection this means the same as no answer, which Kombu and Celery can handle: they connect
again, to whichever server is the right one by then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import redis
from kombu.transport import redis as stock
from redis.exceptions import AskError, MovedError, OutOfMemoryError, ResponseError

from .connecting import drop_idle

#: Answers that mean: this server can't serve now.
AWAY = frozenset({
    "READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "NOREPLICAS", "UNBLOCKED",
})  # fmt: skip

#: How often, and at what interval in seconds, a server that runs a long script is asked again.
BUSY_RETRIES, BUSY_DELAY_S = 20, 0.25

#: The code of an error: at its beginning, or where Redis 6.2 puts the code of a script's error.
_CODE = re.compile(r"^([A-Z]+)\b|: -?([A-Z]{3,})\b|@user_script: \d+: -?([A-Z]{3,})\b")


#: What a node of Redis Cluster answers if a script uses a key of another node.
_NON_LOCAL = "non local key"


class ServerUnable(redis.ConnectionError):
    """The server answered but can't serve: it is a replica, loading, cut off, or lacks the keys."""


def translated(error: ResponseError) -> Exception:
    """Return the error that a refusal means to the caller; the refusal itself if it means no other.

    Args:
        error: the refusal, as the driver raised it.
    """
    text = str(error)
    if isinstance(error, AskError) or _NON_LOCAL in text:
        return ServerUnable(_elsewhere(error))
    codes = {code for match in _CODE.finditer(text) for code in match.groups() if code}
    codes |= {name for name in AWAY | {"OOM"} if f"-{name} " in text}
    if codes & AWAY or isinstance(error, redis.ReadOnlyError):
        return ServerUnable(text)
    if "OOM" in codes and not isinstance(error, OutOfMemoryError):
        return OutOfMemoryError(text)
    return error


def _elsewhere(error: ResponseError) -> str:
    """Explain that a node of Redis Cluster lacks some or all of the queue's keys."""
    if isinstance(error, MovedError):
        other = f"{error.host}:{error.port}"
        return (
            f"MOVED {error.slot_id} {other}: this node of Redis Cluster does not have the keys, but"
            f" {other} does. The transport talks to one node: name that one in the broker's URL, or"
            " all masters as a failover list"
        )
    what = str(error)
    if isinstance(error, AskError):
        what = f"ASK {error.slot_id} {error.host}:{error.port}"
    return (
        f"{what}: this node of Redis Cluster does not have all of the keys. Either"
        " global_keyprefix has no hash tag, as {shop}. is one, or their slot is being moved, which"
        " its queues do not survive: stop workers and senders, complete the move, and start them"
        " with the new node in the broker's URL"
    )


class Translating(redis.Redis):
    """A client whose errors are translated; also a mix-in for other classes of clients."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run a command as redis-py does.

        Raises:
            ServerUnable: the server can't serve now.
            OutOfMemoryError: the server has reached its maxmemory.
            redis.RedisError: as the driver raised it.
        """
        for number in range(BUSY_RETRIES + 1):
            try:
                return self._run(*args, **options)
            except redis.TimeoutError:
                drop_idle()
                raise
            except ResponseError as error:
                if str(error).startswith("BUSY ") and number < BUSY_RETRIES:
                    time.sleep(BUSY_DELAY_S)
                    continue
                other = translated(error)
                if other is error:
                    raise
                raise other from error
        raise AssertionError("the loop returns or raises")

    def _run(self, *args: Any, **options: Any) -> Any:
        return super().execute_command(*args, **options)


class PrefixingClient(Translating, stock.PrefixedStrictRedis):
    """A client for Kombu's own commands.

    Args:
        global_keyprefix: the prefix that it adds to the keys.
    """

    def __init__(self, *args: Any, global_keyprefix: str, **options: Any) -> None:
        stock.PrefixedStrictRedis.__init__(
            self, *args, global_keyprefix=global_keyprefix, **options
        )


class _Pipeline(redis.client.Pipeline):
    """A pipeline whose errors are translated, as those of its client are."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Run the commands as redis-py does, and return their answers.

        Raises:
            ServerUnable: the server can't serve now.
            redis.RedisError: as the driver raised it.
        """
        try:
            answers: list[Any] = super().execute(raise_on_error)
        except ResponseError as error:
            other = translated(error)
            if other is error:
                raise
            raise other from error
        return [translated(one) if isinstance(one, ResponseError) else one for one in answers]


class Client(Translating):
    """A client whose errors are translated, on a pool of its own."""

    def close(self) -> None:
        """Close its connections that are not in use; it may be used again."""
        super().close()
        # redis-py leaves a pool that it was given, and its sockets, open until it is collected. A
        # connection that another thread is using belongs to that thread.
        self.connection_pool.disconnect(inuse_connections=False)

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        """Return a pipeline whose errors are translated too."""
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)

    def _run(self, *args: Any, **options: Any) -> Any:
        if args[0] == "EVALSHA" and not options:
            return self._run_script(*args)
        return super()._run(*args, **options)

    def _run_script(self, *args: Any) -> Any:
        """Run a script without redis-py's work around a command, which takes a third of the time.

        The connection decides how often it is repeated; the answer needs no translation.
        """
        if self.connection is not None:
            return super().execute_command(*args)
        pool, command = self.connection_pool, packed(args)
        connection = pool.get_connection()

        def run() -> Any:
            connection.send_packed_command([command])
            return connection.read_response()

        def fail(error: Exception) -> None:
            connection.disconnect()
            if isinstance(error, redis.TimeoutError):
                drop_idle()

        try:
            return connection.retry.call_with_retry(run, fail)
        finally:
            pool.release(connection)


def packed(args: Sequence[Any]) -> bytes:
    """Return a command in the protocol's encoding.

    Args:
        args: its parts: bytes, text, or numbers.
    """
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        text = arg if isinstance(arg, bytes) else str(arg).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)
