"""`celery -A app cqrs move-queues`: migrate queues from Kombu's own Redis transport, and back."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import Holding
from .broker import broker_channel, is_reply_queue
from .moving import Moved, Mover, OthersInterfere, Unacked
from .table import plain, print_table

#: Seconds between two checks of a lease that has ended.
LOOK_S = 0.5

#: The fields shown in each direction, with their column heads.
_COLUMNS = {
    "from-stock": {
        "queue": "queue",
        "messages": "messages",
        "unacked": "unacked",
        "delayed": "delayed",
        "sequenced": "sequenced",
    },
    "to-stock": {
        "queue": "queue",
        "messages": "messages",
        "delayed": "delayed",
        "expired": "expired",
        "blocked": "blocked, stay",
        "dead": "dead, stay",
    },
}


@click.command(cls=CeleryCommand, name="move-queues")
@click.option("--from-stock", "direction", flag_value="from-stock",
              help="Take over messages of redis:// workers, which must be stopped.")  # fmt: skip
@click.option("--to-stock", "direction", flag_value="to-stock",
              help="Return messages to redis:// workers; ours must be stopped.")  # fmt: skip
@click.option("--queue", "chosen", multiple=True, help="Only this queue; may be repeated.")
@click.option("--dry-run/--yes", "is_dry_run", default=True,
              help="Print what would be moved (the default), or move it.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def move_queues(
    context: click.Context,
    direction: str | None,
    chosen: Sequence[str],
    is_dry_run: bool,
    as_json: bool,
) -> None:
    """Move queued messages from Kombu's own Redis transport to this one, or back."""
    if direction is None:
        raise click.UsageError("use --from-stock or --to-stock")
    app = context.obj.app
    with broker_channel(context) as channel:
        mover = Mover(channel, is_dry_run=is_dry_run)
        unacked = mover.unacked() if direction == "from-stock" else Unacked()
        known = {*mover.names(), *app.amqp.queues, *unacked.queues}
        known = {name for name in known if not is_reply_queue(app, name)}
        if unknown := set(chosen) - known:
            raise click.UsageError(
                f"no queue {_listed(unknown)} is known; there are: {_listed(known)}"
            )
        names = sorted(chosen or known)
        living: list[Holding] = []
        try:
            if direction == "from-stock":
                moved = mover.from_stock(names, unacked)
            else:
                if not is_dry_run:
                    _recover(mover, names, lease_s=float(channel.lease_s))
                moved = mover.to_stock(names)
                living = _living(mover, names)
        except OthersInterfere as error:
            raise click.ClickException(str(error)) from error
    moved = [one for one in moved if any(list(asdict(one).values())[1:])]
    if as_json:
        rows = [{name: asdict(one)[name] for name in _COLUMNS[direction]} for one in moved]
        click.echo(
            json.dumps({"is_done": not is_dry_run, "queues": rows, "left": unacked.left}, indent=2)
        )
        return
    _show(moved, _COLUMNS[direction])
    if unacked.left:
        click.echo(
            f"{unacked.left} unacked messages stay: unreadable, or of no known queue", err=True
        )
    if is_dry_run and living:
        click.echo(f"--yes would be refused: {_told(living)}", err=True)
    if is_dry_run:
        click.echo("\nNothing was changed. To move them, stop every worker and repeat with --yes.")


def _show(moved: Sequence[Moved], columns: dict[str, str]) -> None:
    print_table(list(columns.values()), [[asdict(one)[name] for name in columns] for one in moved])


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(plain, sorted(names))) or "none"


# ---------------------------------------------------------------- consumers


def _holders(mover: Mover, names: Collection[str]) -> list[Holding]:
    """Return the consumers that hold messages of these queues, or wait for some."""
    return [
        holding
        for holding in mover.inspector.holdings()
        if holding.queues & set(names) or any(holding.messages[name] for name in names)
    ]


def _living(mover: Mover, names: Collection[str]) -> list[Holding]:
    return [holding for holding in _holders(mover, names) if holding.is_live]


def _told(holders: Sequence[Holding]) -> str:
    told = [
        f"{h.consumer} holds {h.messages.total()} and its lease ends in {h.lease_ms / 1000:.1f} s"
        for h in holders
    ]
    return plain("; ".join(told))


def _recover(mover: Mover, names: Collection[str], *, lease_s: float) -> None:
    """Return dead consumers' messages to their queues.

    Raises:
        click.ClickException: a consumer is alive.
    """
    before = {holding.consumer for holding in _holders(mover, names)}
    deadline = time.monotonic() + lease_s
    is_told = False
    while True:
        if living := _living(mover, names):
            raise click.ClickException(f"stop these workers first: {_told(living)}")
        if not before or time.monotonic() >= deadline:
            break
        if not is_told:
            # After an outage of Redis every lease has ended; living consumers renew theirs at once.
            click.echo(f"waiting {lease_s:.0f} s for a sign of life of {_listed(before)}", err=True)
            is_told = True
        time.sleep(LOOK_S)
    while mover.queue.recover(most_tries=int(mover.channel.max_deliveries)):
        pass
