"""Run a private Redis or Valkey server, for development, demonstrations and tests.

    with embedded_redis(".data/redis") as server:
        app.conf.broker_url = server.url

    with redis_or_embedded("redis://localhost:6379/0", ".data/redis"):
        ...                     # any process that uses that URL finds a server there

The server listens only on 127.0.0.1. It keeps its data in its folder, in an append-only file that
is forced to the disk every second. Only its user can read its files. It requires a password:
`embedded_redis` generates one, which is in `url` and in the folder; `redis_or_embedded` takes the
URL's. If the URL has no password, the server requires none, since others use the same URL.

The server ends with the process that started it, even if that is killed with -9. Its data are
available again at the next start.

A folder belongs to one server. A second start in it waits for a moment, since the first server may
be ending, and is then refused.
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

#: The server's settings, in addition to port, folder and address.
SETTINGS: Final = {"save": "", "appendonly": "yes", "appendfsync": "everysec"}

#: The most seconds that a server may take to start, or to load its data.
START_S: Final = 60.0

#: Seconds to wait for another server in the same folder to end.
LOCK_S: Final = 5.0

#: Seconds between two checks while waiting.
LOOK_S: Final = 0.02

#: How often a free port is tried if another process takes it first.
PORT_ATTEMPTS: Final = 3

#: The program that runs the server as long as this process exists.
GUARDIAN: Final = Path(__file__).with_name("guardian.py")

#: The hosts in a URL for which an embedded server can stand in.
LOOPBACK: Final = ("localhost", "127.0.0.1")

#: The servers of this process; as they are kept here, they end when closed or with the process.
_running: set[EmbeddedRedis] = set()


class EmbeddedRedis:
    """A running server that this process has started by `embedded_redis`.

    Attributes:
        directory: the folder of its data and its log.
        port: the port on which it listens.
        pid: its process id.
        binary: the path of its program.
        password: the password that it requires; empty if it requires none.
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
        """The URL of the server's database 0, including the password; its `repr` has none."""
        user = f":{quote(self.password, safe='')}@" if self.password else ""
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def close(self) -> None:
        """Stop the server, with its data complete.

        Calling it again, or in a forked process, has no effect.
        """
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
    """Start a server in a folder; return when it answers and has loaded its data.

    Args:
        directory: the folder of its data; it is created if it is missing. Only the user can read
            the files that the server creates, including its password.
        port: the port on which it listens; 0 for a free one.

    Returns:
        The server. Leaving its `with` block, `close()`, and the end of this process stop it.

    Raises:
        MissingDependency: there is no server program on this machine.
        ConfigurationError: another server runs in the folder, the port is taken, or the server
            did not start; the text has the last lines of its output.
    """
    folder = Path(directory)
    deadline = time.monotonic() + LOCK_S
    while True:
        server = _start(folder, port, password=None)
        if server is not None:
            return server
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"another embedded server runs in {folder}: a folder belongs to one server. Use"
                " that server's URL, stop it, or choose another folder."
            )
        time.sleep(LOOK_S)


@contextmanager
def redis_or_embedded(url: str, directory: str | Path) -> Iterator[EmbeddedRedis | None]:
    """Make sure that a server answers at a URL: an existing one, or else an embedded one.

    The embedded server listens on the URL's own port, so every process with the same configuration
    finds it, and nothing has to be passed on. If several processes come at once, one starts the
    server and the others use it. It ends with the process that started it.

    Args:
        url: the URL of the application's server, usually its `broker_url`. An embedded server
            requires the URL's password; if it has none, the server requires none.
        directory: the folder of an embedded server's data.

    Yields:
        The embedded server; None if a server already answered, which is left alone.

    Raises:
        MissingDependency: no server answers, and there is no server program on this machine.
        ConfigurationError: no server answers, and an embedded one can't stand in at this URL or did
            not start.
    """
    # Without the prefix of the transport's own scheme, redis-py knows the URL.
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
            if is_reachable(url):  # another process has started one meanwhile
                return None
            raise
        if server is not None:
            return server
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"another embedded server runs in {directory}, but not at {_address(url)}: a folder"
                " belongs to one server. Stop that server, or choose another folder."
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
    """Return the port on which an embedded server can stand in at a URL.

    Raises:
        ConfigurationError: an embedded server can't stand in at this URL.
    """
    found = _parts(url)
    is_plain = url.startswith("redis://") and not found.get("username")
    if not is_plain or found.get("host", "localhost") not in LOOPBACK:
        raise ConfigurationError(
            f"no Redis or Valkey server answers at {_address(url)}, and an embedded one can only"
            " stand in for redis://localhost:<port>/<database>, or with :<password>@ before the"
            " host, without user and TLS. Start the server, or correct the URL."
        )
    return int(found.get("port", 6379))


def _address(url: str) -> str:
    """Return the part of a URL that may be shown, without credentials."""
    found = _parts(url)
    return str(found.get("path") or f"{found.get('host', 'localhost')}:{found.get('port', 6379)}")


def _parts(url: str) -> dict[str, Any]:
    return redis.ConnectionPool.from_url(url).connection_kwargs


def _start(directory: Path, port: int, *, password: str | None) -> EmbeddedRedis | None:
    """Start a server; return None if another server uses the folder.

    Args:
        directory: its folder.
        port: the port on which it listens; 0 for a free one.
        password: the password that it requires; "" for none, None for the folder's, which is
            generated if it is missing.
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
    # Any user can read a command line, so the password comes from the file.
    command = [binary, *([str(directory / SECRETS)] if is_secret else [])]
    command += ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    for setting, value in SETTINGS.items():
        command += [f"--{setting}", value]
    # A separate session, so that Ctrl-C reaches only the program that uses (and closes) the server.
    return subprocess.Popen(  # noqa: S603  no argument comes from outside
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
    """Wait until the server answers; return False if it has ended or takes too long."""
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
                # Another server may use the port; ours then ends by itself.
                if info["process_id"] == pid and not info["loading"]:
                    return True
            time.sleep(LOOK_S)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
