"""Kill what the tests have started when the tests themselves were killed.

A guardian process reads the process groups to watch from a pipe that only the tests hold open.
However they end, kill -9 included, the pipe ends with them, and the guardian kills every group
that is still on its list. A parent-death signal would not do: it reaches the worker but not the
worker's pool, which a busy child then outlives. A process forked from the tests without exec
holds the pipe open too; the guardian then waits for that process as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path


class Guardian:
    """The list of process groups that must not outlive this process."""

    def __init__(self) -> None:
        """Start the guardian process, in a session of its own: Ctrl-C must not reach it."""
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, start_new_session=True
        )

    def watch(self, group: int) -> None:
        """Put a process group on the list."""
        self._tell(f"+{group}")

    def forget(self, group: int) -> None:
        """Take a process group off the list: it has ended, and its number may be used again."""
        self._tell(f"-{group}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()


@cache
def guardian() -> Guardian:
    """Return the guardian of this process, started at the first call."""
    return Guardian()


def kill_group(group: int) -> None:
    """Kill a process group with SIGKILL; nothing happens if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def is_alive(group: int) -> bool:
    """Tell whether a process group has a process that has not ended; a zombie has."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _guard() -> None:
    groups: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    for group in groups:
        kill_group(group)


if __name__ == "__main__":
    _guard()
