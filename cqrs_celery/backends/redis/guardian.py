"""Run a server as long as the process that uses it exists.

    python guardian.py <its process id> <lock file> <log file> <server> <arguments> …

This is a separate program that imports nothing from the package. It is the server's parent, so the
server's process id can't be reused for another process while this one watches it. It prints one
line: `pid <number>`, `locked` if another server has the lock file, or `error <reason>`.

The end of its standard input shows that the using process has ended, even by kill -9: the input is
a pipe that only that process writes to. If a fork still holds the pipe, a changed parent process id
shows it. The server is then told to end by SIGTERM, so that it completes its append-only file.

The server inherits the lock on the lock file. So the lock lasts as long as the server, even if this
program is killed.
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

#: Seconds between two checks of the parent's process id.
LOOK_S = 0.5

#: The most seconds that the server may take to end by itself.
STOP_S = 10.0


def run(parent: int, lock_path: str, log_path: str, command: list[str]) -> None:
    """Run the server until it or the parent process ends; only its user can read its files."""
    os.umask(0o077)
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("locked")
        return
    try:
        with open(log_path, "ab") as log:  # noqa: PTH123  pathlib would double the starting time
            server = subprocess.Popen(  # noqa: S603  the command comes from our own starter
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
    """Print a line for the parent; ignore the error if that has ended already."""
    with contextlib.suppress(OSError):
        print(line, flush=True)  # noqa: T201  the parent reads it


def stop_with_parent(server: subprocess.Popen[bytes], parent: int) -> None:
    """Wait until the parent process has ended, then stop the server."""
    while os.getppid() == parent:
        is_readable, _, _ = select.select([0], [], [], LOOK_S)
        if is_readable and not os.read(0, 1024):
            break
    stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Tell the server to end, and kill it if it does not."""
    server.terminate()
    try:
        server.wait(STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def end(number: int, frame: FrameType | None) -> None:
    """End the program, and run `finally` blocks."""
    sys.exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, end)
    run(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
