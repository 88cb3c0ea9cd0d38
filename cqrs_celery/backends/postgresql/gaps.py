"""Gaps between positions: who may still fill one, and up to where nobody can.

A position is a number from a sequence, so appends that run at once may commit in another order
than that of their numbers, and one that is rolled back leaves its numbers out. A reader that sees a
gap asks who may still fill it: every append holds, shared, one advisory lock that it took before
its first number. When those that held it when the gap was seen have ended, what is still missing
will not come. No other transaction delays a reader, however long it is open.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import text

from ..sql.access import SqlAccess
from .rules import LOCK_CLASS

#: Seconds that a reader waits at a gap, at most, before it returns what stands in front of it.
GAP_WAIT_S: Final = 2.0

#: Seconds between two looks at who may still fill it: at first, and at most. An append is short as
#: a rule, and one that is not will be a while.
GAP_LOOK_S: Final = 0.002
GAP_LOOK_MOST_S: Final = 0.1

#: Where the position stands in a row of what `Gaps.whole` is given.
AT: Final = 1

#: The transactions that append now, but for one's own. One that was prepared for a two-phase commit
#: holds the lock, too, and has no pid; it keeps its virtual number, from 12.9, 13.5 and 14.1.
_APPENDING: Final = text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND granted"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND classid = :lock_class AND objid = 'cqrs_events'::regclass AND objsubid = 1"
    " AND pid IS DISTINCT FROM pg_backend_pid()"
).bindparams(lock_class=LOCK_CLASS)

#: The last position, and what tells the server's run and the table from all others: a server goes
#: back by being started with other data, or by getting another table.
_PRESENT: Final = text(
    "SELECT coalesce(max(global_position), 0), concat_ws(' ',"
    " (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint,"
    " (SELECT oid FROM pg_database WHERE datname = current_database()),"
    " 'cqrs_events'::regclass::oid, pg_relation_filenode('cqrs_events'))"
    " FROM cqrs_events"
)


class Settled(NamedTuple):
    """A position up to which each number that is missing is of an append that was rolled back.

    Attributes:
        position: that one.
        of: tells the server's run and the table of which this is known from all others.
    """

    position: int
    of: str


#: What is known before a gap was ever waited for.
NOT_SETTLED: Final = Settled(0, "")


class Gaps:
    """What one store knows of the numbers that are missing.

    Args:
        store: reads the database.

    Attributes:
        settled: up to where no number that is missing can appear.
    """

    def __init__(self, store: SqlAccess) -> None:
        self._store = store
        self.settled = NOT_SETTLED

    def forget(self) -> None:
        """Forget what is known: the database may be in an earlier state."""
        self.settled = NOT_SETTLED

    def whole(self, rows: Sequence[Any], after_position: int, what: str) -> int:
        """Return the number of rows before which nothing is missing that may still come."""
        gap = _gap(rows, after_position)
        known = self.settled
        if gap == len(rows) or known.position < rows[gap][AT] - 1:
            return gap
        # Asked after the rows were read: if the server went back before, numbers that were settled
        # may come again. A pooler may have hidden that it was away.
        last, of = self.present(what)
        if of != known.of or last < known.position:
            return gap
        return _gap(rows, max(after_position, known.position))

    def settle(self, what: str) -> bool:
        """Wait until no number that is missing can appear; returns False if it takes too long."""
        deadline = time.monotonic() + GAP_WAIT_S
        last, of = self.present(what)
        # Whoever took a number below that holds the lock now, or has ended, and is seen.
        appending = self.appending(what)
        wait_s = GAP_LOOK_S
        while appending:
            if time.monotonic() > deadline:
                return False
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, GAP_LOOK_MOST_S)
            appending &= self.appending(what)
        known = self.settled
        if known.of != of or known.position < last:
            self.settled = Settled(last, of)
        return True

    def present(self, what: str) -> Settled:
        """Return the last position now, and of which run of the server and which table it is."""
        return Settled(*self._store.rows(_PRESENT, what, self._store.primary_reader)[0])

    def appending(self, what: str) -> set[str]:
        """Return the transactions that append now."""
        return {row[0] for row in self._store.rows(_APPENDING, what, self._store.primary_reader)}


def _gap(rows: Sequence[Any], settled: int) -> int:
    """Return the index of the first row in front of which a number above `settled` is missing."""
    before = settled
    for index, row in enumerate(rows):
        if row[AT] > before + 1:
            return index
        before = max(before, row[AT])
    return len(rows)
