"""`celery -A app cqrs snapshots`: take all snapshots anew, or delete them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import click
from celery.bin.base import CeleryCommand

from ..domain.classes import snapshotted_classes
from ..domain.snapshot_policy import SnapshotFacts
from ..errors import CQRSError
from ..session.repository import Repository
from ..session.snapshots import Snapshots
from ..store.ports import EventStore
from ..store.stream import StreamName
from .application import cqrs_of
from .table import plain, print_table

#: The most events read at a time to find the aggregates.
PAGE = 10_000

#: The number of snapshots per line of progress, if there is no terminal for a bar.
STEP = 1_000


class Reached(NamedTuple):
    """The parts of an application that the commands need."""

    store: EventStore
    repository: Repository
    snapshots: Snapshots
    application: str


@click.group(name="snapshots", help="Take all snapshots anew, or delete them.")
def snapshots() -> None:
    """Group the commands about snapshots."""


@snapshots.command(cls=CeleryCommand, name="rebuild")
@click.option(
    "--aggregate",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only of this type; may be repeated.",
)
@click.option(
    "--all", "is_all", is_flag=True, help="Of every aggregate, not only where its policy is due."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def rebuild(
    context: click.Context, types: Sequence[str], is_all: bool, as_json: bool
) -> None:  # fmt: skip
    """Take a snapshot of every aggregate whose policy is due, from only its events.

    An existing snapshot is replaced, whatever it holds. Workers may run meanwhile.
    """
    with _reach(context) as reached:
        classes = _chosen(types)
        rows = {name: {"taken": 0, "not due": 0, "failed": 0} for name in classes}
        found = sorted(_streams_in(reached, classes)) if classes else []
        for stream in _with_progress(found, f"taking {len(found)} snapshots", as_json):
            outcome = _retake(reached, classes[stream.aggregate_type], stream, is_all)
            rows[stream.aggregate_type][outcome] += 1
    _print(rows, as_json)
    if any(row["failed"] for row in rows.values()):
        context.exit(1)


@snapshots.command(cls=CeleryCommand, name="drop")
@click.option(
    "--aggregate",
    "types",
    multiple=True,
    metavar="TYPE",
    help="Only of this type; may be repeated. The type need not have a class.",
)
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; needs --yes.")
@click.pass_context
def drop(
    context: click.Context, types: Sequence[str], is_sure: bool, as_json: bool
) -> None:  # fmt: skip
    """Delete snapshots; the next loads replay all events, the next commits take new ones."""
    if as_json and not is_sure:
        raise click.UsageError("--json can't ask for confirmation: use --yes")
    with _reach(context) as reached:
        names = list(types) or list(snapshotted_classes())
        store = reached.snapshots.store
        found = [s for name in names for s in store.streams(reached.application, name)]
        if found and not is_sure:
            click.confirm(f"delete {len(found)} snapshots?", abort=True)
        rows = {name: {"deleted": 0} for name in names}
        for stream in _with_progress(found, f"deleting {len(found)} snapshots", as_json):
            rows[stream.aggregate_type]["deleted"] += store.remove(stream)
    _print(rows, as_json)


@contextmanager
def _reach(context: click.Context) -> Iterator[Reached]:
    """Provide the application's parts.

    Raises:
        click.UsageError: the application has no `CQRS`, or no snapshots.
        click.ClickException: a server does not answer.
    """
    app: Any = context.obj.app
    cqrs = cqrs_of(context)
    # The modules of handlers import the aggregates.
    app.loader.import_default_modules()
    try:
        runtime = cqrs.runtime
        repository = runtime.bus.repository
        if repository.snapshots is None:
            raise click.UsageError(
                f"{app.main} has no snapshots: cqrs_snapshots is 'off', or its event store"
                f" {runtime.store!r} keeps none"
            )
        yield Reached(runtime.store, repository, repository.snapshots, runtime.application)
    except CQRSError as error:
        raise click.ClickException(str(error)) from error


def _chosen(types: Sequence[str]) -> dict[str, Any]:
    classes: dict[str, Any] = snapshotted_classes()
    if unknown := sorted(set(types) - set(classes)):
        raise click.UsageError(
            f"no aggregate {', '.join(unknown)} with snapshots is imported; there are:"
            f" {', '.join(sorted(classes)) or 'none'}"
        )
    return {name: classes[name] for name in types or classes}


def _streams_in(reached: Reached, classes: dict[str, Any]) -> set[StreamName]:
    """Return the streams of some types; only the events show which streams exist."""
    found: set[StreamName] = set()
    position = count = 0
    while page := reached.store.read_all(after_position=position, limit=PAGE):
        position = page[-1].global_position
        count += len(page)
        found |= {
            event.stream
            for event in page
            if event.stream.application == reached.application
            and event.stream.aggregate_type in classes
        }
        click.echo(f"{count} events read, {len(found)} aggregates found", err=True)
    return found


def _retake(reached: Reached, cls: Any, stream: StreamName, is_all: bool) -> str:
    """Take a snapshot anew; return the outcome in a word."""
    aggregate = None
    try:
        aggregate = reached.repository.rebuild(cls, stream.aggregate_id, from_events_alone=True)
        if aggregate is None:
            return "not due"
        ledger = aggregate.__ledger__
        facts = SnapshotFacts(ledger.version, 0, None, ledger.load_s)
        reached.snapshots.store.remove(stream)
        if not (is_all or cls.__snapshot_policy__.is_due(facts)):
            return "not due"
        reached.snapshots.take(aggregate, stream)
    except Exception as error:  # noqa: BLE001  the remaining streams are still to be processed
        text = f"{stream}: {type(error).__name__}: {error}"
        click.echo(plain(text, keeps_lines=True), err=True)
        return "failed"
    return "taken"


def _with_progress(
    streams: Sequence[StreamName], label: str, as_json: bool
) -> Iterator[StreamName]:
    """Yield streams and show progress: by a bar on a terminal, otherwise by lines."""
    if sys.stderr.isatty():
        with click.progressbar(streams, label=label, file=sys.stderr) as bar:
            yield from bar
        return
    for number, stream in enumerate(streams, 1):
        yield stream
        if number % STEP == 0 or number == len(streams):
            click.echo(f"{label}: {number} done", err=True)


def _print(rows: dict[str, dict[str, int]], as_json: bool) -> None:
    if as_json:
        named = [{"aggregate": name, **_underscored(row)} for name, row in rows.items()]
        click.echo(json.dumps(named, indent=2))
        return
    heads: Iterable[str] = next(iter(rows.values()), {})
    print_table(("aggregate", *heads), [(name, *row.values()) for name, row in rows.items()])


def _underscored(row: dict[str, int]) -> dict[str, int]:
    return {name.replace(" ", "_"): count for name, count in row.items()}
