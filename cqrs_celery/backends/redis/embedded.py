"""Run a Redis or Valkey server of one's own, for development, demonstrations and tests.

    with embedded_redis(".data/redis") as server:
        app.conf.broker_url = server.url

    with redis_or_embedded("redis://localhost:6379/0", ".data/redis"):
        ...                     # whoever uses that URL finds a server there

The server listens on 127.0.0.1 alone, and keeps its data in its folder, in an append-only file that
is forced to the disk every second. Its files can be read by its user alone. It asks for a password:
`embedded_redis` makes one, which is in `url` and in the folder; `redis_or_embedded` takes that of
the URL. Where the URL has none, there is none, since others come by the same URL.

It ends with the process that started it, also when that one is killed with -9; its data are there
at the next start.

A folder is one server's: a second start in it waits for a moment, since the first server may be
ending, and is refused then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, BusyLoadingError
from redis.retry import Retry

from ...errors import ConfigurationError
from .server_binary import find_server_binary
from .server_folder import SECRETS, own_folder, password_of

#: The server's settings beside port, folder and address.
SETTINGS: Final = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}

#: Seconds that a server has to answer after its start, or to load its data and go on.
START_S: Final = 60.0

#: Seconds to wait for another server in the same folder to end.
LOCK_S: Final = 5.0

#: Seconds between two looks at what is waited for.
LOOK_S: Final = 0.02

#: How often another free port is tried where somebody else was quicker.
PORT_ATTEMPTS: Final = 3

#: The program that keeps the server for as long as this process lives.
GUARDIAN: Final = Path(__file__).with_name("guardian.py")

#: Hosts for which a server of one's own can stand in.
LOOPBACK: Final = ("localhost", "127.0.0.1")

#: Servers that run for this process; kept here, they end when closed or with the process.
_running: set[EmbeddedRedis] = set()


class EmbeddedRedis:
    """A running server that this process has started; `embedded_redis` makes it.

    Attributes:
        directory: where its data and its log are.
        port: where it listens.
        pid: its process id.
        binary: the program that it runs.
        password: what it asks for; empty if nothing.
    """

    def __init__(
        self,
        directory: Path,
        port: int,
        pid: int,
        binary: str,
        process: subprocess.Popen[str],
        *,
        password: str = "",
    ) -> None:
        self.directory = directory
        self.port = port
        self.pid = pid
        self.binary = binary
        self.password = password
        self._process = process
        self._owner = os.getpid()
        _running.add(self)

    @property
    def url(self) -> str:
        """The URL of its database 0, with its password; `repr` of the server shows it without."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Stop the server, its data complete; a second time does nothing, nor does it in a fork."""
        if os.getpid() != self._owner:
            return
        _running.discard(self)
        if self._process.returncode is None:
            self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EmbeddedRedis 127.0.0.1:{self.port} in {self.directory}, process {self.pid}>"


def embedded_redis(directory: str | Path, *, port: int = 0) -> EmbeddedRedis:
    """Start a server in a folder, and return once it answers, its data loaded.

    Args:
        directory: where its data are kept; made if it is missing. The files that the server makes
            can be read by their user alone, its password among them.
        port: where it listens; 0 for a free one.

    Returns:
        The server. Leaving its `with` block, `close()`, and the end of this process stop it.

    Raises:
        MissingDependency: there is no server program on this machine.
        ConfigurationError: another server runs in the folder, the port is taken, or the server
            did not start; the text has its last words.
    """
    folder = Path(directory)
    deadline = time.monotonic() + LOCK_S
    while True:
        server = _start(folder, port, password=None)
        if server is not None:
            return server
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"another embedded server runs in {folder}: a folder is one server's. Use that"
                " one's URL, stop it, or name another folder."
            )
        time.sleep(LOOK_S)


@contextmanager
def redis_or_embedded(url: str, directory: str | Path) -> Iterator[EmbeddedRedis | None]:
    """Make sure that a server answers at a URL: the one that is there, or one of one's own.

    The embedded server stands in at the URL's own port, so every process with the same
    configuration finds it, and nothing has to be passed on. Of several that come at once, one
    starts it and the others use it; it ends with the one that started it.

    Args:
        url: where the application looks for its server; its `broker_url`, as a rule. An embedded
            server asks for its password, and for none if it has none.
        directory: where an embedded server keeps its data.

    Yields:
        The embedded server; None where a server was there, which is left alone.

    Raises:
        MissingDependency: nothing answers, and there is no server program on this machine.
        ConfigurationError: nothing answers at a URL that an embedded server can't stand in for, or
            it did not start.
    """
    # The transport's own scheme is a plain one to redis-py.
    server = _join_or_start(url.removeprefix("reliable-"), Path(directory))
    try:
        yield server
    finally:
        if server is not None:
            server.close()


def _join_or_start(url: str, directory: Path) -> EmbeddedRedis | None:
    deadline = time.monotonic() + START_S
    while not is_reachable(url):
        try:
            server = _start(
                directory, _port_of(url), password=str(_parts(url).get("password") or "")
            )
        except ConfigurationError:
            if is_reachable(url):  # somebody else was quicker
                return None
            raise
        if server is not None:
            return server
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"another embedded server runs in {directory}, but not at {_address(url)}: a folder"
                " is one server's. Stop that one, or name another folder."
            )
        time.sleep(LOOK_S)
    return None


def is_reachable(url: str) -> bool:
    """Return whether a Redis or Valkey server answers at a URL, even with a refusal."""
    client = redis.Redis.from_url(
        url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
    )
    try:
        with client:
            client.ping()
    except (AuthenticationError, AuthorizationError, BusyLoadingError):
        return True
    except (redis.ConnectionError, redis.TimeoutError):
        return False
    except redis.RedisError:
        return True
    return True


def _port_of(url: str) -> int:
    """Return the port at which an embedded server is to stand in for a URL's.

    Raises:
        ConfigurationError: it can't.
    """
    found = _parts(url)
    is_plain = url.startswith("redis://") and not found.get("username")
    if not is_plain or found.get("host", "localhost") not in LOOPBACK:
        raise ConfigurationError(
            f"no Redis or Valkey server answers at {_address(url)}, and an embedded one stands in"
            " for redis://localhost:<port>/<database>, or with :<password>@ in front of the host,"
            " only, without user and TLS. Start the server, or correct the URL."
        )
    return int(found.get("port", 6379))


def _address(url: str) -> str:
    """Return the part of a URL that may be shown."""
    found = _parts(url)
    return str(found.get("path") or f"{found.get('host', 'localhost')}:{found.get('port', 6379)}")


def _parts(url: str) -> dict[str, Any]:
    return redis.ConnectionPool.from_url(url).connection_kwargs


def _start(directory: Path, port: int, *, password: str | None) -> EmbeddedRedis | None:
    """Start a server; returns None where another one has the folder.

    Args:
        directory: its folder.
        port: where it listens; 0 for a free one.
        password: what it asks for; "" for nothing, None for that of the folder, which is made.
    """
    binary = find_server_binary()
    directory = own_folder(directory)
    password = password_of(directory, password)
    for attempt in range(1, PORT_ATTEMPTS + 1):
        log = directory / "server.log"
        log_start = log.stat().st_size if log.exists() else 0
        chosen = port or _free_port()
        process = _spawn(directory, log, binary, chosen, is_secret=bool(password))
        said = process.stdout.readline() if process.stdout else ""
        word, _, rest = said.strip().partition(" ")
        if word == "pid" and _becomes_ready(process, chosen, int(rest), password):
            return EmbeddedRedis(directory, chosen, int(rest), binary, process, password=password)
        process.communicate()
        if word == "locked":
            return None
        if word == "pid":
            said = log.read_bytes()[log_start:].decode(errors="replace")
        if port or attempt == PORT_ATTEMPTS or "in use" not in said:
            raise ConfigurationError(
                f"{binary} did not start on 127.0.0.1:{chosen} in {directory}:\n"
                + "\n".join(said.splitlines()[-10:])
            )
    raise AssertionError("unreachable")


def _spawn(
    directory: Path, log: Path, binary: str, port: int, *, is_secret: bool
) -> subprocess.Popen[str]:
    # Everybody may read a command line: the password comes from the file.
    command = [binary, *([str(directory / SECRETS)] if is_secret else [])]
    command += ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    for setting, value in SETTINGS.items():
        command += [f"--{setting}", value]
    # A session of its own: Ctrl-C is for the program that uses the server, which then closes it.
    return subprocess.Popen(  # noqa: S603  nothing of it comes from outside
        [
            *(sys.executable, "-I", "-S", str(GUARDIAN)),
            *(str(os.getpid()), str(directory / "server.lock"), str(log)),
            *command,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _becomes_ready(process: subprocess.Popen[str], port: int, pid: int, password: str) -> bool:
    """Wait until the server answers; returns False if it has ended, or takes too long."""
    deadline = time.monotonic() + START_S
    client = redis.Redis(
        host="127.0.0.1",
        port=port,
        password=password or None,
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
    )
    with client:
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError):
                info = client.info()
                # Another server may have the port; ours then ends by itself.
                if info["process_id"] == pid and not info["loading"]:
                    return True
            time.sleep(LOOK_S)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
