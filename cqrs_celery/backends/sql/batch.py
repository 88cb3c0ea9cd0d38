"""What one append writes, ready for any engine, and the errors of one that is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ...errors import ConcurrencyError, TransactionConflict
from ...store.events import CommandRecord, NewEvent, StreamAppend
from ...store.refusals import check_appends

#: Seconds for which an append at any version is remembered: its reply was lost, and it comes again.
REMEMBERED_S: Final = 600


@dataclass(frozen=True, slots=True)
class Batch:
    """What one append writes.

    Attributes:
        appends: as they were given.
        keys: of their streams.
        events: of all of them, stream after stream.
        written: the appends with events; of the streams of the others the version is checked.
        last_ids: the id of the last event of each of them; by them a repeated append is known.
        last_versions: of those events; empty if a stream's version is not known in advance.
    """

    appends: Sequence[StreamAppend]
    keys: tuple[str, ...]
    events: tuple[NewEvent, ...]
    written: tuple[StreamAppend, ...]
    last_ids: tuple[str, ...]
    last_versions: tuple[int, ...]

    @classmethod
    def of(cls, appends: Sequence[StreamAppend], *, may_only_check: bool = False) -> Batch:
        """Return the batch of an append.

        Args:
            appends: one for each stream.
            may_only_check: whether all of them may be without events.

        Raises:
            ValueError: there is nothing to append, or a stream is there twice.
            InvalidText: an id or a name has a NUL, which no SQL database takes.
        """
        check_appends(appends, may_only_check=may_only_check)
        written = tuple(append for append in appends if append.events)
        return cls(
            appends,
            tuple(append.stream.key for append in appends),
            tuple(event for append in written for event in append.events),
            written,
            tuple(append.events[-1].event_id for append in written),
            ()
            if any(append.expected_version < 0 for append in written)
            else tuple(append.expected_version + len(append.events) for append in written),
        )

    @property
    def as_command(self) -> CommandRecord | None:
        """What an append is remembered by, if no version tells that it is a repeated one."""
        if self.last_versions or not self.events:
            return None
        return CommandRecord(f"append:{self.events[0].event_id}", "null", REMEMBERED_S)

    def __str__(self) -> str:
        """What is appended to, for errors."""
        return "append to " + ", ".join(str(append.stream) for append in self.appends)


class VersionRefused(Exception):
    """A stream of a batch, named by its index, is at another version than was expected."""

    def __init__(self, index: int, found: int) -> None:
        super().__init__(index, found)
        self.index = index
        self.found = found


class CommandRefused(Exception):
    """The command has committed before."""


def beaten(batch: Batch, reason: BaseException) -> ConcurrencyError:
    """Return the error for a transaction that the database aborted in favour of another one."""
    append = batch.appends[0]
    return TransactionConflict(
        f"could not {batch}: the database ended the transaction for the sake of another one"
        f" ({reason}). Nothing was written. Load everything again and repeat the command.",
        stream=str(append.stream),
        expected=append.expected_version,
        found=append.expected_version,
    )


def beaten_repeatedly(
    what: str, where: str, attempts: int, reason: BaseException
) -> TransactionConflict:
    """Return the error for what the database aborted at each attempt."""
    times = "once" if attempts == 1 else f"{attempts} times in a row"
    return TransactionConflict(
        f"could not {what}: {where} ended it {times} for the sake of other transactions"
        f" ({reason}). Nothing was written. Repeat it.",
        stream="",
        expected=0,
        found=0,
    )
