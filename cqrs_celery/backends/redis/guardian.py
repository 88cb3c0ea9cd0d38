"""Run a server for as long as the process that wants it lives.

    python guardian.py <its process id> <lock file> <log file> <server> <arguments> …

A program of its own, which imports nothing of the package. It is the server's parent, so the
server's process id can't come to mean another process while it is watched. It says one line:
`pid <number>`, `locked` when another server has the lock file, or `error <why>`.

That the other process has ended, kill -9 included, is told by the end of this one's standard input,
a pipe that only the other one writes to; and, where a fork of it still holds that pipe, by our
parent's process id. The server is then asked to end (SIGTERM: it completes its append-only file).

The lock on the lock file is the server's too: it lasts as long as the server, even where this
program was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
import threading
from types import FrameType

#: Seconds between two looks at the parent's process id.
LOOK_S = 0.5

#: Seconds that the server has to end by itself.
STOP_S = 10.0


def run(parent: int, lock_path: str, log_path: str, command: list[str]) -> None:
    """Run the server until it, or the parent process, ends; its files are its user's alone."""
    os.umask(0o077)
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("locked")
        return
    try:
        with open(log_path, "ab") as log:  # noqa: PTH123  pathlib takes half of the start's time
            server = subprocess.Popen(  # noqa: S603  the command is our own starter's
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=[lock]
            )
    except OSError as error:
        say(f"error {error}")
        return
    try:
        threading.Thread(target=stop_with_parent, args=(server, parent), daemon=True).start()
        say(f"pid {server.pid}")
        server.wait()
    finally:
        stop(server)


def say(line: str) -> None:
    """Tell the parent; if it has ended already, nobody listens."""
    with contextlib.suppress(OSError):
        print(line, flush=True)  # noqa: T201  it is what the parent reads


def stop_with_parent(server: subprocess.Popen[bytes], parent: int) -> None:
    """Wait until the parent process has ended, then stop the server."""
    while os.getppid() == parent:
        is_readable, _, _ = select.select([0], [], [], LOOK_S)
        if is_readable and not os.read(0, 1024):
            break
    stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and kill it if it does not."""
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def end(number: int, frame: FrameType | None) -> None:
    """Leave, by way of `finally`."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    run(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
