"""A TCP proxy that cuts connections, refuses new ones, swallows replies, or speaks TLS, for tests.

    with Proxy(redis_node.port) as proxy:
        connect(f"redis://127.0.0.1:{proxy.port}/0")
        proxy.cut()

It can also be a black hole, as a firewall is that has lost a connection's state: nothing is refused
or reset, and nothing comes through.

It runs in threads of the test's own process: nothing is left of it when the test ends.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
from typing import Self

#: Closes with a reset instead of a farewell, as a machine does that went down.
_RESET = struct.pack("ii", 1, 0)

#: The name of the command at the beginning of what a client writes.
_COMMAND = re.compile(rb"\*\d+\r\n\$\d+\r\n(\w+)\r\n")


class _Pair:
    """A connection of a client, and the one to the server that goes with it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.is_mute = False
        #: True once nothing passes any more, not even the news that one end has closed.
        self.is_lost = False
        #: the names of the commands that were passed on, as far as each began a write
        self.commands: set[bytes] = set()

    def cut(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Pass every connection on to a port of this machine, until told otherwise.

    Args:
        target: the port.
        tls: makes it speak TLS with its clients, for servers that were built without.
    """

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = target
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        #: how many replies were swallowed
        self.swallowed = 0
        #: how many connections were accepted and passed on
        self.accepted = 0
        #: how many requests were passed on, as far as each is written at once
        self.requests = 0
        #: how many bytes of replies were passed on
        self.reply_bytes = 0
        self._marker: bytes | None = None
        self._is_refusing = False
        self._is_closed = threading.Event()
        #: Set while bytes pass; a black hole that holds them back clears it.
        self._is_passing = threading.Event()
        self._is_passing.set()
        #: True while a black hole loses what comes in.
        self._is_losing = False
        self._is_silent = False
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def url(self, database: int = 0) -> str:
        """Return the URL of a Redis database behind the proxy."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def cut(self) -> int:
        """Reset every connection that is open; returns how many."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            pair.cut()
        return len(pairs)

    def turn_to(self, target: int) -> None:
        """Pass new connections on to another port."""
        self._target = target

    def refuse(self) -> None:
        """Cut every connection, and each new one at once."""
        self._is_refusing = True
        self.cut()

    def accept(self) -> None:
        """Let connections through again; those that were left without an answer are cut."""
        self._is_refusing = False
        if self._is_silent:
            self._is_silent = False
            self.cut()

    def silence(self) -> None:
        """Take connections and requests from now on, and answer none of them."""
        self._is_silent = True

    def swallow_reply_to(self, marker: bytes) -> None:
        """Pass the next request that has these bytes on, and cut instead of passing its reply."""
        self._marker = marker

    def begin_hole(self, *, is_losing: bool) -> None:
        """Become a black hole: connections are made and stay open, and nothing passes either way.

        Args:
            is_losing: True if connections from before the end stay dead after it; False if all that
                was held back comes through late.
        """
        if is_losing:
            self._is_losing = True
            self.lose_connections()
        else:
            self._is_passing.clear()

    def end_hole(self) -> None:
        """Pass bytes again: those of new connections, and those that were held back."""
        self._is_losing = False
        self._is_passing.set()

    def lose_connections(self, *, with_command: bytes = b"") -> int:
        """Pass nothing more of the connections that are open; returns how many those are.

        Args:
            with_command: only those that have sent this command, e.g. SUBSCRIBE.
        """
        with self._lock:
            pairs = [p for p in self._pairs if not with_command or with_command in p.commands]
            for pair in pairs:
                pair.is_lost = True
        return len(pairs)

    def close(self) -> None:
        """Stop listening and cut everything."""
        self._is_refusing = True
        self.end_hole()
        self._is_closed.set()
        # close() alone would not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._is_refusing:
                _Pair(client, client).cut()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                _Pair(client, client).cut()
                continue
            pair = _Pair(client, server)
            pair.is_lost = self._is_losing
            with self._lock:
                self._pairs.add(pair)
                self.accepted += 1
            if self._tls is not None:
                threading.Thread(target=self._pass_tls, args=(pair,), daemon=True).start()
                continue
            for work in (self._pass_requests, self._pass_replies):
                threading.Thread(target=work, args=(pair,), name="proxy", daemon=True).start()

    def _pass_requests(self, pair: _Pair) -> None:
        with self._ending(pair):
            while chunk := self._received(pair, pair.client):
                command = _COMMAND.match(chunk)
                if command is not None:
                    pair.commands.add(command[1].upper())
                marker = self._marker
                if marker is not None and marker in chunk:
                    self._marker = None
                    pair.is_mute = True
                self.requests += 1
                pair.server.sendall(chunk)

    def _pass_replies(self, pair: _Pair) -> None:
        with self._ending(pair):
            while chunk := self._received(pair, pair.server):
                if self._is_silent:
                    pair.is_mute = True
                    continue
                if pair.is_mute:
                    self.swallowed += 1
                    return
                self.reply_bytes += len(chunk)
                pair.client.sendall(chunk)

    def _received(self, pair: _Pair, end: socket.socket) -> bytes:
        """Return what is to be passed on; nothing at the connection's end."""
        chunk = end.recv(65536)
        self._is_passing.wait()
        if pair.is_lost:
            # The other end does not hear of it: it is cut when the proxy closes.
            while chunk:
                chunk = end.recv(65536)
            self._is_closed.wait()
        return chunk

    def _pass_tls(self, pair: _Pair) -> None:
        # One thread for both directions: a TLS connection bears no two.
        assert self._tls is not None
        with self._ending(pair):
            pair.client = client = self._tls.wrap_socket(pair.client, server_side=True)
            while True:
                readable, _, _ = select.select([client, pair.server], [], [])
                if pair.server in readable:
                    chunk = pair.server.recv(65536)
                    if not chunk:
                        return
                    client.sendall(chunk)
                if client in readable:
                    chunk = client.recv(65536)
                    if not chunk:
                        return
                    pair.server.sendall(chunk)
                    while client.pending():
                        pair.server.sendall(client.recv(65536))

    @contextlib.contextmanager
    def _ending(self, pair: _Pair):
        try:
            # A closed socket is no number to select on.
            with contextlib.suppress(OSError, ValueError):
                yield
        finally:
            with self._lock:
                self._pairs.discard(pair)
            pair.cut()
