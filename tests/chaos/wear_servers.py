"""What the events of `tests.chaos.wear` are in: how each server is reached, broken and mended."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg2

from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from tests.nodes import ProcessNode, free_port
from tests.postgres import PostgresNode, as_nobody, with_driver
from tests.proxy import Proxy

DATABASE = "wear"


class Server:
    """A database with events in it."""

    #: What can happen to it, in addition to what can happen to every one.
    blows: tuple[str, ...] = ()

    #: Where processes reach it, if that is a port.
    port: int | None = None

    #: Whether it is a database of Django's.
    is_django = False

    #: Its URL, as this process reaches it.
    url: str

    def url_by(self, port: int | None) -> str:
        """Return its URL, by way of a proxy's port."""
        return self.url if port is None else self.url.replace(f":{self.port}/", f":{port}/")

    def open(self) -> SqlEventStore:
        """Return a store in it, for this process."""
        store = open_event_store(self.url)
        assert isinstance(store, SqlEventStore)
        return store

    @contextlib.contextmanager
    def committing(self, chance: random.Random) -> Iterator[None]:
        """Enter what a commit is made in."""
        yield

    def close(self) -> None:
        """End it."""


class Sqlite(Server):
    """A file, which is copied, and put back while nothing runs."""

    blows = ("restore",)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "events.db"
        self.url = f"sqlite:///{self._file}"

    def back_up(self) -> Path:
        """Copy it, whatever is written meanwhile."""
        path = self._folder / "copy.db"
        path.unlink(missing_ok=True)
        with (
            contextlib.closing(sqlite3.connect(self._file)) as source,
            contextlib.closing(sqlite3.connect(path)) as target,
        ):
            source.backup(target)
        return path

    def restore(self, path: Path) -> None:
        """Put a copy in its place."""
        for name in ("-wal", "-shm"):
            Path(f"{self._file}{name}").unlink(missing_ok=True)
        shutil.copy(path, self._file)

    def is_free(self) -> bool:
        """Return whether nobody is in the middle of a write."""
        with contextlib.closing(sqlite3.connect(self._file, timeout=0.5)) as file:
            try:
                file.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
        return True


class Postgres(Server):
    """A server with a name that stays: a proxy, which is turned to the primary of the moment."""

    blows: tuple[str, ...] = (
        "restore",
        "promote a lagging replica",
        "kill the database",
        "cut the leader off",
    )

    def __init__(self, folder: Path, driver: str) -> None:
        self._folder = folder
        (folder / "postgres").mkdir()
        self.node = PostgresNode(folder / "postgres")
        self.node.start()
        self.node.create_database(DATABASE)
        self.front = Proxy(self.node.port)
        self.port = self.front.port
        self._replicas = 0
        self.url = with_driver(
            f"postgresql://postgres@127.0.0.1:{self.front.port}/{DATABASE}", driver
        )

    def back_up(self) -> Path:
        """Take a base backup."""
        return self.node.back_up()

    def restore(self, folder: Path) -> None:
        """Put a backup in the place of what is there."""
        self.node.kill()
        self.node.restore(folder)
        self.node.start()

    def stand_by(self) -> PostgresNode:
        """Return a replica that has followed, and follows no more."""
        self._replicas += 1
        replica = self.node.stand_by(self._folder / f"replica-{self._replicas}")
        replica.cut_off()
        return replica

    def promote(self, replica: PostgresNode) -> None:
        """Lose the primary for good, and make a replica the primary."""
        self.node.kill()
        self.node.teardown()
        replica.promote()
        self.node = replica
        self.front.turn_to(replica.port)

    def close(self) -> None:
        """End it."""
        self.front.close()
        self.node.teardown()


class PgBouncerNode(ProcessNode):
    """A PgBouncer before a port; the program must be on PATH."""

    def __init__(self, directory: Path, target: int, mode: str) -> None:
        super().__init__("pgbouncer", directory)
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="cqrs-pgbouncer-"))
        config = self._folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host=127.0.0.1 port={target} user=postgres\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = any\npool_mode = {mode}\nmax_client_conn = 200\n"
            "default_pool_size = 20\nserver_login_retry = 1\n"
        )
        if os.geteuid() == 0:
            shutil.chown(self._folder, "nobody")
            shutil.chown(config, "nobody")

    @property
    def id(self) -> str:
        """The address, shortened."""
        return f"pool-{self.port}"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        """Nothing: it is no broker."""
        return {}

    def command(self) -> list[str]:
        """Return its command line."""
        return ["pgbouncer", str(self._folder / "pgbouncer.ini")]

    def popen_options(self) -> dict[str, Any]:
        """Run as nobody where we are root."""
        return {**as_nobody(), "cwd": "/"}

    def is_ready(self) -> bool:
        """Return whether a query through it is answered."""
        with contextlib.suppress(psycopg2.OperationalError):
            psycopg2.connect(
                host="127.0.0.1", port=self.port, user="postgres", dbname=DATABASE
            ).close()
            return True
        return False

    def teardown(self) -> None:
        """Kill it, and remove its folder."""
        super().teardown()
        shutil.rmtree(self._folder, ignore_errors=True)


class Pooled(Postgres):
    """PostgreSQL behind PgBouncer."""

    blows = (*Postgres.blows, "kill the pooler")

    def __init__(self, folder: Path, driver: str, mode: str) -> None:
        super().__init__(folder, driver)
        self.pooler = PgBouncerNode(folder, self.front.port, mode)
        self.pooler.start()
        self.pooler.wait_ready()
        self.url = self.url.replace(f":{self.front.port}/", f":{self.pooler.port}/")
        self.port = self.pooler.port

    def close(self) -> None:
        """End it."""
        self.pooler.teardown()
        super().close()


class _Django(Server):
    """A database of Django's: every other commit is made in a transaction of its."""

    is_django = True

    def open(self) -> SqlEventStore:
        """Return a store in it, for this process."""
        from tests import playhouse

        playhouse.choose_database(self.url)
        store = open_event_store("django://default")
        assert isinstance(store, SqlEventStore)
        return store

    @contextlib.contextmanager
    def committing(self, chance: random.Random) -> Iterator[None]:
        """Enter a transaction of Django's, or nothing."""
        from django.db import connections, transaction
        from django.db.utils import InterfaceError, OperationalError

        from cqrs_celery.errors import StoreUnavailable

        if chance.random() < 0.5:
            yield
            return
        try:
            with transaction.atomic():
                yield
        except (OperationalError, InterfaceError) as error:
            connections.close_all()
            raise StoreUnavailable(f"Django: {error}") from error
        except StoreUnavailable:
            connections.close_all()
            raise


class DjangoPostgres(_Django, Postgres):
    """Django's database is a PostgreSQL."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "psycopg2")


class DjangoSqlite(_Django, Sqlite):
    """Django's database is a file."""

    def restore(self, path: Path) -> None:
        """Put a copy in its place, while this process has no connection to it."""
        from django.db import connections

        connections.close_all()
        super().restore(path)
