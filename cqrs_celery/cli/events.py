"""`celery -A app cqrs events check`: read the whole store, and report what this code can't read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..errors import CQRSError, MessageError, UnknownMessageType
from ..messages.serializer import Serializer
from ..store.events import StoredEvent
from ..store.ports import EventStore
from ..store.reading import Reads
from .application import cqrs_of
from .table import plain, print_table

#: The most events read at once.
BATCH = 1000

#: The outcome of events of other applications in the same store that nothing here reads.
NOT_OURS = "not ours"

#: The number of batches between two lines of progress.
TELL_EVERY = 100


@click.group(name="events", help="Check the stored events.")
def events() -> None:
    """Group the commands about stored events."""


@dataclass
class Finding:
    """The outcome for the events of one type and version and, if they fail, of one error.

    Attributes:
        type: the events' type.
        version: the version of that type.
        outcome: "read", "upcast", "dropped", "not ours", or the error's name.
        first_position: the position of the first of them.
        first_stream: the stream of the first of them, and its version there.
        error: the text of the first one's error; "" for none.
        events: the number of events.
    """

    type: str
    version: int
    outcome: str
    first_position: int
    first_stream: str
    error: str = ""
    events: int = 0

    @property
    def is_failure(self) -> bool:
        """Whether the events can't be read."""
        return bool(self.error)


@dataclass
class Check:
    """A check of stored events: it reads them and keeps the outcomes.

    Args:
        serializer: the application's serializer.
    """

    serializer: Serializer
    position: int = 0
    events: int = 0
    _found: dict[tuple[str, int, str], Finding] = field(default_factory=dict)

    def read(self, store: EventStore, *, after_position: int) -> Any:
        """Read events up to the store's end; yield after every batch.

        Raises:
            StoreUnavailable: the store's server does not answer.
        """
        self.position = after_position
        while batch := self._next(store):
            for stored in batch:
                self._note(stored, *self._outcome_of(stored))
            self.position = batch[-1].global_position
            self.events += len(batch)
            yield self

    def _next(self, store: EventStore) -> Sequence[StoredEvent]:
        # A replica may lack some events, or be another database by mistake.
        with Reads(from_primary=True):
            return store.read_all(after_position=self.position, limit=BATCH)

    def findings(self) -> list[Finding]:
        """Return the findings: failures first, then by type and version."""
        return sorted(
            self._found.values(), key=lambda f: (not f.is_failure, f.type, f.version, f.outcome)
        )

    def _outcome_of(self, stored: StoredEvent) -> tuple[str, str]:
        event, registry = stored.event, self.serializer.registry
        try:
            made = self.serializer.decode_all("event", event.type, event.type_version, event.data)
        except MessageError as error:
            if self._is_not_ours(stored, error):
                return NOT_OURS, ""
            return type(error).__name__, "; ".join([str(error), *getattr(error, "__notes__", ())])
        if not made:
            return "dropped", ""
        key = event.type, event.type_version, self.serializer.application
        reader = registry.resolve("event", *key)
        return ("read" if len(made) == 1 and getattr(reader, "cls", None) else "upcast"), ""

    def _is_not_ours(self, stored: StoredEvent, error: MessageError) -> bool:
        """Return whether another application has recorded this event and nothing here reads it."""
        serializer = self.serializer
        application, name = serializer.application, stored.event.type
        return (
            stored.stream.application != application
            and isinstance(error, UnknownMessageType)
            and not serializer.registry.knows("event", name, application)
        )

    def _note(self, stored: StoredEvent, outcome: str, error: str) -> None:
        event = stored.event
        key = event.type, event.type_version, outcome
        finding = self._found.get(key)
        if finding is None:
            place = f"{stored.stream} version {stored.version}"
            finding = self._found[key] = Finding(*key, stored.global_position, place, error)
        finding.events += 1


@events.command(cls=CeleryCommand, name="check")
@click.option("--after", "after", type=click.IntRange(min=0), default=0,
              help="Begin after this position, up to which events were checked.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def check(context: click.Context, after: int, as_json: bool) -> None:
    """Decode every stored event as aggregates and subscriptions do.

    The exit code is 1 if an event can't be decoded. Events of other applications that nothing here
    reads are counted, but are not failures. Nothing is changed, and no handler runs.
    """
    app: Any = context.obj.app
    cqrs = cqrs_of(context)
    # Import the modules that the configuration names, as a worker does.
    app.loader.import_default_modules()
    try:
        checked = Check(cqrs.runtime.serializer)
        for number, _ in enumerate(checked.read(cqrs.store, after_position=after), 1):
            if number % TELL_EVERY == 0:
                click.echo(f"{checked.events} events, to position {checked.position}", err=True)
    except CQRSError as error:
        raise click.ClickException(str(error)) from error
    found = checked.findings()
    failing = [one for one in found if one.is_failure]
    if as_json:
        click.echo(_json(checked, found))
    else:
        _show(checked, found, failing)
    if failing:
        context.exit(1)


def _json(checked: Check, found: list[Finding]) -> str:
    return json.dumps(
        {
            "is_ok": not any(one.is_failure for one in found),
            "events": checked.events,
            "last_position": checked.position,
            "findings": [
                {
                    "type": one.type,
                    "version": one.version,
                    "outcome": one.outcome,
                    "is_failure": one.is_failure,
                    "events": one.events,
                    "first_position": one.first_position,
                    "first_in": one.first_stream,
                    "error": one.error or None,
                }
                for one in found
            ],
        },
        indent=2,
    )


def _show(checked: Check, found: list[Finding], failing: list[Finding]) -> None:
    print_table(
        ("event", "version", "events", "outcome", "first in", "first position"),
        [
            (one.type, one.version, one.events, one.outcome, one.first_stream, one.first_position)
            for one in found
        ],
    )
    for one in failing:
        text = f"{one.type} version {one.version}: {one.error}"
        click.echo(f"\n{plain(text, keeps_lines=True)}")
    count = sum(one.events for one in failing)
    others = sum(one.events for one in found if one.outcome == NOT_OURS)
    click.echo(
        f"\n{checked.events} events to position {checked.position}:"
        + (f" {count} can't be read" if count else " all can be read")
        + (f", but for {others} of other applications" if others else "")
    )
