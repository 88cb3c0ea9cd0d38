"""Keep threads out of SQLite while this process forks.

SQLite guards what its connections share (its list of open files, its memory) by locks of the
process. A fork copies them as they are: what another thread holds at that moment stays held in the
child for ever, and the child's first use of SQLite waits for it. So a fork waits until the other
threads have come out, and they wait until it is done.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from typing import Final

logger = logging.getLogger(__name__)

#: Seconds for which a fork waits at most. A thread inside longer than that waits, as a rule, for
#: another process's write, or for a connection of the pool: it holds none of those locks then.
WAIT_S: Final = 5.0


class ForkGate:
    """A gate that whoever uses SQLite enters, also from within; a fork waits until all have left.

    Args:
        wait_s: for how many seconds a fork waits at most.
    """

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._reset()

    def _reset(self) -> None:
        # Its lock may be taken again: the garbage collector closes connections at any moment.
        self._changed = threading.Condition()
        self._depths: dict[int, int] = {}
        self._forking: int | None = None

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            depth = self._depths.get(me, 0)
            # Who is inside already must come to its end, which the fork waits for.
            while not depth and self._forking not in (None, me):
                self._changed.wait()
            self._depths[me] = depth + 1

    def __exit__(self, *error: object) -> None:
        me = threading.get_ident()
        with self._changed:
            # In a child that was forked from inside, nobody is counted.
            depth = self._depths.pop(me, 1) - 1
            if depth:
                self._depths[me] = depth
            elif self._forking is not None:
                self._changed.notify_all()

    def before_fork(self) -> None:
        """Wait until no other thread is inside, and let none in."""
        me = threading.get_ident()
        deadline = time.monotonic() + self._wait_s
        # Kept until after the fork. In the child it is this thread's, too, so that what the garbage
        # collector closes there before `after_fork_in_child` finds it free.
        self._changed.acquire()
        while self._forking is not None:
            self._changed.wait()
        self._forking = me
        while self._depths.keys() - {me}:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                logger.warning(
                    "forked while another thread was using SQLite: it did not end in %s s. If the"
                    " new process hangs at its first use of SQLite, end it.",
                    self._wait_s,
                )
                return
            self._changed.wait(left_s)

    def after_fork_in_parent(self) -> None:
        """Let the other threads in again."""
        self._forking = None
        self._changed.notify_all()
        self._changed.release()

    def after_fork_in_child(self) -> None:
        """Forget the parent's threads, which are not here."""
        self._reset()


class ForkSafeConnection(sqlite3.Connection):
    """A connection that also the garbage collector closes only while nobody forks."""

    def __del__(self) -> None:
        with between_forks, contextlib.suppress(sqlite3.Error):
            self.close()


#: The one of this process.
between_forks: Final = ForkGate()

os.register_at_fork(
    before=between_forks.before_fork,
    after_in_parent=between_forks.after_fork_in_parent,
    after_in_child=between_forks.after_fork_in_child,
)
