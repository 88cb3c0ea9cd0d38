"""`celery -A app cqrs subscriptions`: who gets which events, and who no longer should."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import QueueInspector, QueueLook
from .application import sql_store_of
from .broker import broker_channel, is_reliable
from .table import plain, print_table


@click.group(name="subscriptions", help="See who gets which events, and remove who should not.")
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
        ("subscription", "function's task", "events", "waiting", "dead", "workers"),
        [
            (row["subscription"], row["task"], ", ".join(row["events"]), _shown(row["waiting"]),
             _shown(row["dead"]), "NONE" if row["workers"] == 0 else _shown(row["workers"]))
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
    """Return the registered functions that a name means.

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
    holdings = inspector.holdings()
    rows = []
    for one in inspector.subscribers():
        look = inspector.look(one.queue, holdings)
        workers = sum(holding.consumes(one.queue) for holding in holdings)
        rows.append(_row(one, waiting=_waiting(look), dead=look.dead, workers=workers))
    return rows


def _row(one: Any, **counts: int) -> dict[str, Any]:
    return {
        "subscription": one.queue,
        "task": one.name,
        "events": sorted(one.topics),
        "waiting": counts.get("waiting"),
        "dead": counts.get("dead"),
        "workers": counts.get("workers"),
    }


def _shown(count: int | None) -> int | str:
    return "?" if count is None else count
