"""The refusals of every store, in the same words: stale versions, repeated commands, odd appends.

Nothing here reads a store. An engine finds out what is wrong, and gets the error here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..errors import (
    AggregateExists,
    ConcurrencyError,
    DuplicateCommand,
    InvalidText,
    LeaseLost,
    LockTimeout,
    StaleVersion,
)
from .events import CommandOutcome, CommandRecord, Lease, StreamAppend
from .stream import NO_STREAM, StreamName

#: The most characters of a text that an error shows.
SHOWN: Final = 100


class ClaimLost(Exception):
    """Another relay has become the active one since, or the broker is another one."""


def check_appends(appends: Sequence[StreamAppend], *, may_only_check: bool = False) -> None:
    """Check that an append writes events, to each stream once, under ids that can be stored.

    Args:
        appends: one for each stream; without events, it only checks the stream's version.
        may_only_check: whether all of them may be without events.

    Raises:
        ValueError: there are no appends, or none with events; one without events does not expect
            a version from 1; or two are for one stream.
        InvalidText: an id or a name can't be kept by every store.
    """
    if not appends or not (may_only_check or any(append.events for append in appends)):
        raise ValueError("nothing to append; expected at least one stream with its events")
    streams = set()
    for append in appends:
        if not append.events and append.expected_version < 1:
            raise ValueError(
                f"the append to {append.stream} has no events, so it checks the stream's version;"
                f" expected a version from 1, found {append.expected_version}"
            )
        if append.stream in streams:
            raise ValueError(
                f"{append.stream} is appended to twice in one commit; expected one append with all"
                " its events"
            )
        streams.add(append.stream)
        # All texts are checked as one, since the cost of a check hardly depends on the length.
        texts = [*append.stream]
        for event in append.events:
            trace = event.metadata
            texts += event.event_id, event.type, trace.correlation_id
            texts += trace.causation_id, trace.causation_parent_id
            if trace.context:
                texts += [*trace.context, *trace.context.values()]
        if not _is_kept("".join(texts)):
            for text in texts:
                check_text(text, f"an id or a name in the append to {append.stream!r}")


def check_command(command: CommandRecord | None) -> None:
    """Check that every store can record a command.

    Raises:
        InvalidText: its id or its outcome can't be kept by every store.
    """
    if command is not None:
        check_text(command.command_id, "the command's id")
        check_text(command.outcome, f"the outcome of the command {command.command_id}")


def check_stream(stream: StreamName) -> None:
    """Check that every store can keep a stream's name.

    Raises:
        InvalidText: a part of the name can't be kept by every store.
    """
    if not _is_kept("".join(stream)):
        for text in stream:
            check_text(text, f"a part of the stream's name {stream!r}")


def check_text(text: str, what: str) -> None:
    """Check that every store can keep a text: as UTF-8, without a NUL.

    Args:
        text: an id, or another text.
        what: names the text in the error, such as "the command's id".

    Raises:
        InvalidText: it has a NUL, or half of a surrogate pair.
    """
    if not _is_kept(text):
        found = "a NUL" if "\0" in text else "half of a surrogate pair"
        raise InvalidText(
            f"{what} has {found}: {text[:SHOWN]!r}. Not every store can hold it; expected text"
            " without NUL that has a form in UTF-8. Nothing was written. Use another one.",
            text=text,
        )


def _is_kept(text: str) -> bool:
    if "\0" in text:
        return False
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True


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


def stale_version(stream: StreamName, *, expected: int, found: int) -> StaleVersion:
    """Return the error for an aggregate that is not at the version that the caller expects."""
    return StaleVersion(
        f"{stream} is at version {found}, but expected_version is {expected}: the aggregate has"
        " changed since that version was chosen, or the number is wrong. Nothing was written, and"
        " repeating the command can't help. Look at the aggregate again and decide anew.",
        stream=str(stream),
        expected=expected,
        found=found,
    )


def exists_already(stream: StreamName, *, found: int) -> AggregateExists:
    """Return the error for an existing aggregate that was added as new, without looking for it."""
    return AggregateExists(
        f"{stream} exists already, at version {found}, but was added as a new aggregate without"
        " looking for it. Nothing was written, and repeating the command can't help. Look first:"
        f" session.find({stream.aggregate_type}, {stream.aggregate_id!r}) returns it, or None.",
        stream=str(stream),
        expected=NO_STREAM,
        found=found,
    )


def command_repeated(command_id: str, outcome: CommandOutcome) -> DuplicateCommand:
    """Return the error for a command that has committed before."""
    return DuplicateCommand(
        f"the command {command_id} has committed before, at position {outcome.position}. Nothing"
        " was written. This error carries the outcome that was recorded then.",
        command_id=command_id,
        position=outcome.position,
        outcome=outcome.outcome,
    )


def lock_timeout(stream: StreamName, *, holder: str, waited_s: float) -> LockTimeout:
    """Return the error for a lock that somebody else held for too long."""
    return LockTimeout(
        f"{stream} is locked by {holder}, and stayed locked for the {waited_s:g} s that this"
        " command waited. The command was not carried out. Repeat it, or raise its handler's"
        " lock_wait_s.",
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
