"""What every store refuses, in the same words: stale versions, repeated commands, odd appends.

Nothing here reads a store. An engine finds out what is the case and asks here for the error.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import ConcurrencyError, DuplicateCommand, LeaseLost, LockTimeout
from .events import CommandOutcome, Lease, StreamAppend
from .stream import NO_STREAM, StreamName


def check_appends(appends: Sequence[StreamAppend]) -> None:
    """Check that an append writes something, and to each stream once.

    Raises:
        ValueError: there is no append, one is without events, or a stream is there twice.
    """
    if not appends:
        raise ValueError("nothing to append; expected at least one stream with its events")
    streams = set()
    for append in appends:
        if not append.events:
            raise ValueError(f"the append to {append.stream} has no events; expected at least one")
        if append.stream in streams:
            raise ValueError(
                f"{append.stream} is appended to twice in one commit; expected one append with all"
                " its events"
            )
        streams.add(append.stream)


def version_conflict(stream: StreamName, *, expected: int, found: int) -> ConcurrencyError:
    """Return the error for a stream that is at another version than expected."""
    wanted = "expected to be new" if expected == NO_STREAM else f"expected {expected}"
    return ConcurrencyError(
        f"{stream} is at version {found}, {wanted}: another writer committed first, and nothing of"
        " this commit was written. Load it again and repeat the command.",
        stream=str(stream),
        expected=expected,
        found=found,
    )


def command_repeated(command_id: str, outcome: CommandOutcome) -> DuplicateCommand:
    """Return the error for a command that has committed before."""
    return DuplicateCommand(
        f"the command {command_id} has committed before, at position {outcome.position}. Nothing"
        " was written. Take the outcome that it then recorded: it is in this error.",
        command_id=command_id,
        position=outcome.position,
        outcome=outcome.outcome,
    )


def lock_timeout(stream: StreamName, *, holder: str, waited_s: float) -> LockTimeout:
    """Return the error for a lock that somebody else held for too long."""
    return LockTimeout(
        f"{stream} is locked by {holder}, and was so for the {waited_s:g} s that this command"
        " waited; it was not carried out. Repeat it, or let its handler wait longer (lock_wait_s).",
        aggregate=str(stream),
        holder=holder,
        waited_s=waited_s,
    )


def lease_lost(lease: Lease) -> LeaseLost:
    """Return the error for a worker whose lease on its message has ended."""
    return LeaseLost(
        f"{lease.consumer} no longer holds message {lease.message_id}: its lease ended, and another"
        " worker may have taken over. Nothing was written.",
        message_id=lease.message_id,
    )
