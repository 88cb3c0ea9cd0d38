"""An append as a call of one of the database's functions, and what its answers mean."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import msgspec

from ...messages.metadata import Metadata
from ...store.events import CommandRecord, Committed
from ..sql.appending import encode
from ..sql.batch import Batch, CommandRefused, VersionRefused
from .prepared import Statement, code_of, function
from .rules import to_jsonb

_APPEND: Final = function(
    "cqrs_append_v1",
    "integer[]", "text[]", "text[]", "text[]", "text[]", "bigint[]", "integer[]", "jsonb",
    "text", "text", "bigint",
)  # fmt: skip

_APPEND_ONE: Final = function(
    "cqrs_append_one_v1",
    "text", "text", "text", "text", "bigint",
    "text", "text", "integer", "jsonb", "jsonb", "timestamptz",
    "text", "text", "bigint",
)  # fmt: skip


class _Row(msgspec.Struct):
    """An event as the function takes it, with its stream's index and its place behind it."""

    stream: int
    after: int
    event_id: str
    type: str
    type_version: int
    payload: msgspec.Raw
    metadata: Metadata
    recorded_at: datetime


_NO_COMMAND: Final = (None, None, None)


def call_of(batch: Batch, command: CommandRecord | None) -> tuple[Statement, Sequence[Any]]:
    """Return the function that appends a batch, and its arguments."""
    appends, events = batch.appends, batch.events
    recorded = (command.command_id, command.outcome, command.ttl_s) if command else _NO_COMMAND
    if len(events) == 1 == len(appends):
        stream, event = appends[0].stream, events[0]
        return _APPEND_ONE, (
            batch.keys[0], *stream, appends[0].expected_version,
            event.event_id, event.type, event.type_version, to_jsonb(event.data).decode(),
            encode(event.metadata).decode(), event.timestamp,
            *recorded,
        )  # fmt: skip
    keys = list(batch.keys)
    streams = [append.stream for append in appends]
    return _APPEND, (
        sorted(range(1, len(keys) + 1), key=lambda index: keys[index - 1]),
        keys,
        [stream.application for stream in streams],
        [stream.aggregate_type for stream in streams],
        [stream.aggregate_id for stream in streams],
        [append.expected_version for append in appends],
        [len(append.events) for append in appends],
        encode(
            [
                _Row(
                    index,
                    after,
                    event.event_id,
                    event.type,
                    event.type_version,
                    msgspec.Raw(to_jsonb(event.data)),
                    event.metadata,
                    event.timestamp,
                )
                for index, append in enumerate(appends, 1)
                for after, event in enumerate(append.events, 1)
            ]
        ).decode(),
        *recorded,
    )


def refusal_of(error: Any) -> Exception:
    """Return what an error of the functions means: theirs, or the driver's own as it is."""
    code = code_of(error)
    if code == "CQ001":
        index, _, found = error.diag.message_primary.partition(",")
        return VersionRefused(int(index) - 1, int(found))
    return CommandRefused() if code == "CQ002" else error


def committed_at(rows: Sequence[Any]) -> Committed:
    """Return where an append ended, from what its function returned."""
    position, *versions = rows[0][0]
    return Committed(position, tuple(versions))
