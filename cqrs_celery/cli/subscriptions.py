"""`celery -A app cqrs subscriptions`: list who gets which events; pause and remove them."""

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


@click.group(name="subscriptions", help="List who gets which events; pause and remove them.")
def subscriptions() -> None:
    """Group the commands about subscriptions."""


@subscriptions.command(cls=CeleryCommand, name="list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def list_subscriptions(context: click.Context, as_json: bool) -> None:
    """List the registered functions; a subscription that no worker consumes is marked.

    With another broker than the reliable queue, waiting messages and consumers are not known.
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
@click.option(
    "--purge", is_flag=True, help="Delete waiting messages, if nobody else uses the queue."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@click.option("--yes", "is_sure", is_flag=True, help="Don't ask.")
@click.pass_context
def remove(context: click.Context, name: str, purge: bool, dry_run: bool, is_sure: bool) -> None:
    """Stop sending events to a function: NAME is that of its task, or of its whole subscription.

    Messages that it was sent stay, unless they are purged. A worker that still has the function
    registers it again when it starts, so deploy without the function first.
    """
    if not is_reliable(context):
        registry = _registry(context)
        if purge:
            raise click.UsageError(
                "--purge needs the reliable queue. Remove without it, and delete waiting messages"
                " by Celery's own command: celery -A <app> purge -Q <subscription>"
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
        # If there is a SQL store, it keeps its subscribers, too.
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
    """Pause subscriptions: no worker takes their messages, which are kept in order.

    Running messages finish; messages that workers have prefetched and not started go back. Other
    subscriptions are not affected. A subscription is paused with all its functions, until it is
    resumed.
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
    """Resume paused subscriptions; messages that came meanwhile are handled in their order."""
    with _pausing(context) as channel:
        found, paused = QueueInspector(channel.queue).subscribers(), channel.queue.paused()
        for name in names:
            # A subscription that was removed while it was paused is no longer registered.
            if name not in paused:
                _check_is_subscription(name, found)
        was = channel.queue.resume(list(dict.fromkeys(names)))
        for name in dict.fromkeys(names):
            click.echo(plain(f"{name} {'resumed' if name in was else 'was not paused'}"))


@contextmanager
def _pausing(context: click.Context) -> Iterator[Any]:
    """Provide a channel to the broker.

    Raises:
        click.UsageError: the broker is not the reliable queue; only that one can pause.
    """
    if not is_reliable(context):
        with context.obj.app.connection_for_read() as connection:
            where = connection.as_uri()
        raise click.UsageError(
            f"the broker {where} is not the reliable queue, and no other can pause a subscription:"
            " its workers would go on. Stop the workers that consume it instead, or let them"
            " consume other queues: celery -A <app> control cancel_consumer <subscription>"
        )
    with broker_channel(context) as channel:
        yield channel


def _check_is_subscription(name: str, found: Iterable[Any]) -> None:
    """Check that a subscription of this name is registered.

    Raises:
        click.UsageError: no such subscription is registered; or the name is that of a function.
            The functions of a subscription share one order, so they are paused together.
    """
    (first, *_) = _chosen(found, name)
    if first.queue != name:
        raise click.UsageError(
            f"{name} is a function of the subscription {first.queue}, which is paused with all its"
            f" functions, since they share one order: use the name {first.queue}"
        )


def _check_know_of_pauses(inspector: QueueInspector, names: Sequence[str]) -> None:
    """Check that all workers that consume these queues support pauses.

    Raises:
        click.ClickException: a worker is of an older release, and would go on.
    """
    old = [
        one.about.worker or one.consumer
        for one in inspector.holdings()
        if not one.about.pauses and any(map(one.consumes, names))
    ]
    if old:
        raise click.ClickException(
            f"nothing was paused: the workers {', '.join(sorted(old))} are of a release without"
            " pauses, and would go on. Upgrade or stop them, and repeat"
        )


class _Registry:
    """The subscribers that a SQL event store has registered, for a broker that registers none."""

    def __init__(self, outbox: Any, application: str) -> None:
        self._outbox = outbox
        self._application = application

    def subscribers(self) -> list[Any]:
        """Return the registered subscribers, sorted by queue and name."""
        found = self._outbox.subscribers(self._application)
        return sorted(found, key=lambda one: (one.queue, one.name))

    def unregister(self, name: str, topics: Sequence[str]) -> int:
        """Remove a subscriber from topics; return the number it was removed from."""
        count: int = self._outbox.unregister(self._application, name, topics)
        return count


def _registry(context: click.Context) -> _Registry:
    """Return the SQL event store's registry.

    Raises:
        click.UsageError: there is no such store, so nothing registers subscriptions.
    """
    otherwise = "its broker is not the reliable queue: nothing registers who gets which events"
    store = sql_store_of(context, otherwise=otherwise)
    return _Registry(store.outbox, context.obj.app.cqrs.settings.application)


def _chosen(found: Iterable[Any], name: str) -> list[Any]:
    """Return the registered functions that a name refers to.

    Raises:
        click.UsageError: it refers to none.
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
    """Print what would be removed, and ask for confirmation; return False for a dry run.

    Raises:
        click.Abort: the user declined.
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
    """Return how many messages wait, for any reason: the number that a purge deletes."""
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
        # Only the reliable queue has pauses.
        "paused": False,
    }


def _shown(count: int | None) -> int | str:
    return "?" if count is None else count
