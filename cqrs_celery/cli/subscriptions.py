"""`celery -A app cqrs subscriptions`: who gets which events, who waits, who no longer should."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import QueueInspector, QueueLook
from .application import sql_store_of
from .broker import broker_channel, is_reliable
from .table import plain, print_table


@click.group(name="subscriptions", help="See who gets which events; pause and remove them.")
def subscriptions() -> None:
    """Gather the commands."""


@subscriptions.command(cls=CeleryCommand, name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_subscriptions(context: click.Context, as_json: bool) -> None:
    """List the registered functions; one that no worker takes from is marked.

    With another broker than the reliable queue, what waits and who takes is not known.
    """
    if is_reliable(context):
        with broker_channel(context) as channel:
            rows = _rows(QueueInspector(channel.queue))
    else:
        rows = [_row(one) for one in _registry(context).subscribers()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    print_table(
        ("subscription", "function's task", "events", "waiting", "dead", "workers", "state"),
        [
            (row["subscription"], row["task"], ", ".join(row["events"]), _shown(row["waiting"]),
             _shown(row["dead"]), "NONE" if row["workers"] == 0 else _shown(row["workers"]),
             "paused" if row["paused"] else "")
            for row in rows
        ],
    )  # fmt: skip


@subscriptions.command(cls=CeleryCommand, name="remove")
@click.argument("name")
@click.option("--purge", is_flag=True, help="Delete what waits, if nobody else uses the queue.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.pass_context
def remove(context: click.Context, name: str, purge: bool, dry_run: bool, is_sure: bool) -> None:
    """Let a function get no more events: NAME is its task's, or that of its whole subscription.

    What it was sent stays, unless it is purged. A worker that still has the function registers it
    again when it starts: deploy without it first.
    """
    if not is_reliable(context):
        registry = _registry(context)
        if purge:
            raise click.UsageError(
                "--purge needs the reliable queue. Remove without it, and delete what waits by"
                " Celery's own command: celery -A <app> purge -Q <subscription>"
            )
        chosen = _chosen(registry.subscribers(), name)
        if _is_to_go_on(chosen, dry_run, is_sure):
            _unregister(chosen, registry.unregister)
        return
    with broker_channel(context) as channel:
        inspector = QueueInspector(channel.queue)
        found = inspector.subscribers()
        chosen = _chosen(found, name)
        others = {one.queue for one in found if one not in chosen}
        purged = sorted({one.queue for one in chosen} - others) if purge else []
        holdings = inspector.holdings() if purged else []
        waiting = {queue: _waiting(inspector.look(queue, holdings)) for queue in purged}
        if not _is_to_go_on(chosen, dry_run, is_sure, waiting):
            return
        # Where there is a SQL store, it remembers its subscribers too.
        cqrs = getattr(context.obj.app, "cqrs", None)
        if cqrs is not None and cqrs.runtime.subscriptions is not None:
            _unregister(chosen, cqrs.runtime.subscriptions.unregister)
        _unregister(chosen, channel.queue.unsubscribe)
        for queue in purged:
            deleted = _messages(channel.queue.delete(queue))
            click.echo(plain(f"{deleted} of {queue} deleted"))


@subscriptions.command(cls=CeleryCommand, name="pause")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def pause(context: click.Context, names: Sequence[str]) -> None:
    """Pause subscriptions: no worker takes anything of them, and all of it is kept in order.

    What runs ends; what workers have prefetched and not begun goes back. Others don't notice. A
    subscription is paused with all its functions, until it is resumed.
    """
    with _pausing(context) as channel:
        inspector = QueueInspector(channel.queue)
        found = inspector.subscribers()
        for name in names:
            _check_is_subscription(name, found)
        _check_know_of_pauses(inspector, names)
        new = channel.queue.pause(list(dict.fromkeys(names)))
        for name in dict.fromkeys(names):
            click.echo(plain(f"{name} {'paused' if name in new else 'was paused already'}"))


@subscriptions.command(cls=CeleryCommand, name="resume")
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.pass_context
def resume(context: click.Context, names: Sequence[str]) -> None:
    """Let paused subscriptions go on, with what has come meanwhile, in its order."""
    with _pausing(context) as channel:
        found, paused = QueueInspector(channel.queue).subscribers(), channel.queue.paused()
        for name in names:
            # One that was removed while it was paused is registered no more.
            if name not in paused:
                _check_is_subscription(name, found)
        was = channel.queue.resume(list(dict.fromkeys(names)))
        for name in dict.fromkeys(names):
            click.echo(plain(f"{name} {'resumed' if name in was else 'was not paused'}"))


@contextmanager
def _pausing(context: click.Context) -> Iterator[Any]:
    """Provide a channel to the broker.

    Raises:
        click.UsageError: the broker is not the reliable queue, which alone can pause.
    """
    if not is_reliable(context):
        with context.obj.app.connection_for_read() as connection:
            where = connection.as_uri()
        raise click.UsageError(
            f"the broker {where} is not the reliable queue, and no other can pause a subscription:"
            " its workers would go on. Stop those that consume it instead, or let them consume"
            " other queues: celery -A <app> control cancel_consumer <subscription>"
        )
    with broker_channel(context) as channel:
        yield channel


def _check_is_subscription(name: str, found: Iterable[Any]) -> None:
    """Check that a subscription of this name is registered.

    Raises:
        click.UsageError: none is; or the name is that of one of its functions, which are in order
            with each other, and so are paused together.
    """
    (first, *_) = _chosen(found, name)
    if first.queue != name:
        raise click.UsageError(
            f"{name} is a function of the subscription {first.queue}, which is paused with all its"
            f" functions, since they are in order: name {first.queue}"
        )


def _check_know_of_pauses(inspector: QueueInspector, names: Sequence[str]) -> None:
    """Check that all workers that take from these queues would heed a pause.

    Raises:
        click.ClickException: some are of an older release, and would take on.
    """
    old = [
        one.about.worker or one.consumer
        for one in inspector.holdings()
        if not one.about.pauses and any(map(one.consumes, names))
    ]
    if old:
        raise click.ClickException(
            f"nothing was paused: the workers {', '.join(sorted(old))} are of a release that knows"
            " of no pause, and would go on. Upgrade or stop them, and repeat"
        )


class _Registry:
    """The subscribers that a SQL event store has registered, where its broker registers none."""

    def __init__(self, outbox: Any, application: str) -> None:
        self._outbox = outbox
        self._application = application

    def subscribers(self) -> list[Any]:
        """Return who is registered, sorted by queue and name."""
        found = self._outbox.subscribers(self._application)
        return sorted(found, key=lambda one: (one.queue, one.name))

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; returns from how many."""
        count: int = self._outbox.unregister(self._application, name, topics)
        return count


def _registry(context: click.Context) -> _Registry:
    """Return the SQL event store's registry.

    Raises:
        click.UsageError: there is no such store, so nothing knows of subscriptions.
    """
    otherwise = "its broker is not the reliable queue: nothing registers who gets which events"
    store = sql_store_of(context, otherwise=otherwise)
    return _Registry(store.outbox, context.obj.app.cqrs.settings.application)


def _chosen(found: Iterable[Any], name: str) -> list[Any]:
    """Return the registered functions to which a name refers.

    Raises:
        click.UsageError: there are none.
    """
    registered = list(found)
    chosen = [one for one in registered if name in (one.name, one.queue)]
    if not chosen:
        names = ", ".join(dict.fromkeys(one.queue for one in registered)) or "none"
        raise click.UsageError(f"no subscription {name} is registered; there are: {names}")
    return chosen


def _is_to_go_on(
    chosen: Iterable[Any], dry_run: bool, is_sure: bool, waiting: dict[str, int] | None = None
) -> bool:
    """Print what would be removed, and ask; returns False for a dry run.

    Raises:
        click.Abort: the answer was no.
    """
    for one in chosen:
        click.echo(plain(f"{one.name} gets {', '.join(one.topics)}"))
    for queue, count in (waiting or {}).items():
        wait = "waits" if count == 1 else "wait"
        click.echo(plain(f"{queue} has {_messages(count)} that {wait}"))
    if dry_run:
        return False
    if not is_sure:
        click.confirm("remove?", abort=True)
    return True


def _unregister(chosen: Iterable[Any], unregister: Callable[[str, Sequence[str]], object]) -> None:
    for one in chosen:
        unregister(one.name, one.topics)


def _messages(count: int) -> str:
    return f"{count} message{'' if count == 1 else 's'}"


def _waiting(look: QueueLook) -> int:
    """Return how many messages wait, for whatever: as many as a purge deletes."""
    return look.ready + look.waiting + look.retrying + look.blocked + look.delayed


def _rows(inspector: QueueInspector) -> list[dict[str, Any]]:
    holdings, paused = inspector.holdings(), inspector.paused()
    rows = []
    for one in inspector.subscribers():
        look = inspector.look(one.queue, holdings)
        workers = sum(holding.consumes(one.queue) for holding in holdings)
        row = _row(one, waiting=_waiting(look), dead=look.dead, workers=workers)
        rows.append({**row, "paused": one.queue in paused})
    return rows


def _row(one: Any, **counts: int) -> dict[str, Any]:
    return {
        "subscription": one.queue,
        "task": one.name,
        "events": sorted(one.topics),
        "waiting": counts.get("waiting"),
        "dead": counts.get("dead"),
        "workers": counts.get("workers"),
        # Only the reliable queue knows of pauses.
        "paused": False,
    }


def _shown(count: int | None) -> int | str:
    return "?" if count is None else count
