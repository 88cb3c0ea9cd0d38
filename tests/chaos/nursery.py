"""Start processes a hundred times a minute: forked from one that has imported Celery already.

A worker that starts in a second would make a thousand rounds of killing take an hour. The nursery
is a process of its own, so that what is forked inherits nothing of the tests; when it ends, however
it ends, its children are killed by the kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from tests.nodes import REPOSITORY
from tests.waiting import wait_until

_PR_SET_PDEATHSIG = 1


class Child:
    """Be a process that was forked in a nursery."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def send(self, number: signal.Signals) -> None:
        """Send it a signal; nothing happens if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self, deadline_s: float = 20) -> None:
        """Wait until it has ended."""
        wait_until(lambda: not self.is_alive, deadline_s, lambda: f"end: {self.tail()}")

    def wait_said(self, text: str, deadline_s: float = 30) -> None:
        """Wait until it has written this text."""

        def said() -> bool:
            assert self.is_alive, f"ended:\n{self.tail()}"
            return text in self.log.read_text(errors="replace")

        wait_until(said, deadline_s, lambda: f"{text!r} in:\n{self.tail()}")

    def tail(self) -> str:
        """Return the end of what it has written."""
        return self.log.read_text(errors="replace")[-3_000:]


class Nursery:
    """Fork processes that run functions, in a folder.

    Args:
        folder: where they run, and log.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        path = os.pathsep.join([str(folder), str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.communicate()

    def start(self, function: str, *args: Any, env: dict[str, str] | None = None) -> Child:
        """Fork a process that calls "module:function" with these arguments, plain values."""
        self._number += 1
        log = self._folder / f"child-{self._number}.log"
        log.touch()
        order = {"function": function, "args": args, "env": env or {}, "log": str(log)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return Child(int(self._process.stdout.readline()), log)


def run_worker(module: str, *argv: str) -> None:
    """Run a Celery worker on the application in a module."""
    import_module(module).app.worker_main(["worker", *argv])


def _be_child(order: dict[str, Any]) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    os.environ.update(order["env"])
    module, _, function = order["function"].partition(":")
    getattr(import_module(module), function)(*order["args"])


def _serve() -> None:
    for name in ("celery.bin.celery", "celery.apps.worker", "celery.worker.consumer",
                 "celery.concurrency.solo", "cqrs_celery.transport", "cqrs_celery.cli",
                 "cqrs_celery.workers.relay", "cqrs_celery.backends.sql.choosing",
                 "cqrs_celery.backends.postgresql.event_store",
                 "cqrs_celery.backends.sqlite.event_store",
                 "sqlalchemy.dialects.postgresql.psycopg2"):  # fmt: skip
        import_module(name)
    # The kernel buries the children.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                _be_child(json.loads(line))
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
