"""Show what the library does: `python -m sample_app.demo`.

Starts a Redis and one worker of two processes, sends a few weeks' orders of a small shop as
commands, waits until each has its outcome and the read model has every event, and compares the
stock with a direct computation. Ends with 0 if they are equal, with 1 and the differences if not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from celery import exceptions
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import sample_app.handlers  # noqa: F401  they answer the query
from cqrs_celery import embedded_redis
from sample_app import read_model
from sample_app.app import cqrs
from sample_app.commands import ListItems
from sample_app.data import SHOP, Order, read_orders
from sample_app.expected import Expected, compute
from sample_app.orders import command_of
from sample_app.processes import WORKER, ended_by_sigterm, last_words, running
from sample_app.read_model import StockRow

#: Seconds to wait for the next outcome, and for the read model to have every event.
DEADLINE_S: Final = 60.0

#: Rows of the stock that are shown: those that moved most.
SHOWN: Final = 15

console = Console()


class Failed(Exception):
    """Say what did not come to an end."""


@dataclass
class Outcomes:
    """Hold what became of the commands.

    Attributes:
        position: of the last event that any of them committed.
        refused: how many had none, by the name of the reason.
        examples: a text for each reason.
    """

    position: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, result: Any) -> None:
        """Count a command's result: where it committed, or why it did not."""
        if isinstance(result, Exception):
            reason = type(result).__name__
            self.refused[reason] += 1
            self.examples.setdefault(reason, str(result))
        else:
            self.position = max(self.position, result["position"])


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    orders = read_orders(options.orders)
    started = time.monotonic()
    try:
        with ExitStack() as stack:
            stack.enter_context(ended_by_sigterm())
            directory = options.directory or Path(stack.enter_context(TemporaryDirectory()))
            directory = directory.resolve()
            redis = stack.enter_context(embedded_redis(directory / "redis"))
            # For the worker, and for the settings, which are read at the first use of the app.
            os.environ["REDIS_URL"] = redis.url
            os.environ[read_model.VARIABLE] = str(directory / "stock.sqlite3")
            where = f"redis://127.0.0.1:{redis.port}/0"
            console.print(f"[bold]{where}[/] runs ({Path(redis.binary).name})")
            log = directory / "worker.log"
            worker = stack.enter_context(running(WORKER, log))
            stack.callback(read_model.close)
            try:
                outcomes = carry_out(orders, worker)
            except Failed as failure:
                console.print(f"[red]{failure}[/] The worker's last words:")
                console.print(last_words(log), markup=False)
                return 1
            except KeyboardInterrupt:
                # Here, since the results that wait let go of Redis while it is there.
                return _interrupted()
            rows = cqrs.query(ListItems())
    except KeyboardInterrupt:
        return _interrupted()
    show(rows, outcomes)
    expected = compute(orders)
    differences = list(compare(expected, rows, outcomes))
    for line in differences:
        console.print(line, style="red", markup=False)
    if differences:
        console.print("[red bold]The read model differs from the direct computation.[/]")
        return 1
    console.print(
        f"[green bold]The read model equals the direct computation:[/] {len(rows)} items,"
        f" {outcomes.position} events, in {time.monotonic() - started:.0f} s."
    )
    return 0


def _interrupted() -> int:
    console.print("ended before the end")
    return 130


def carry_out(orders: Sequence[Order], worker: subprocess.Popen[bytes]) -> Outcomes:
    """Send a command for each order, and wait until the last trace of it is in the read model.

    Raises:
        Failed: the worker has ended, or it takes too long.
    """
    columns = TextColumn("{task.description:<11}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        sent = progress.add_task("sent", total=len(orders))
        answered = progress.add_task("answered", total=len(orders))
        stocked = progress.add_task("read model", total=None)

        results = []
        for order in orders:
            results.append(command_of(order).delay())
            progress.advance(sent)

        outcomes = Outcomes()
        for result in results:
            for _ in _until(DEADLINE_S, worker, "a command's outcome"):
                try:
                    # An exception is an outcome too: returned, not raised.
                    outcomes.add(result.get(timeout=1, propagate=False))
                    break
                except exceptions.TimeoutError:
                    continue
            progress.advance(answered)

        # Positions have no gap, so the last one is the number of events.
        progress.update(stocked, total=outcomes.position)
        for _ in _until(DEADLINE_S, worker, "the read model to have every event"):
            counted = read_model.events_counted()
            progress.update(stocked, completed=counted)
            if counted >= outcomes.position:
                return outcomes
            time.sleep(0.05)
    raise AssertionError("unreachable")


def show(rows: Sequence[StockRow], outcomes: Outcomes) -> None:
    """Print the stock, and what was refused."""
    stock = Table("item", "name", "in stock", "events", title="Stock")
    for row in sorted(rows, key=lambda row: -row.version)[:SHOWN]:
        stock.add_row(row.id, escape(row.name), str(row.count), str(row.version))
    if len(rows) > SHOWN:
        stock.add_row("…", f"and {len(rows) - SHOWN} more", "", "")
    console.print(stock)
    refused = Table("reason", "commands", "for example", title="Refused")
    for reason, number in outcomes.refused.most_common():
        refused.add_row(reason, str(number), escape(outcomes.examples[reason]))
    refused.add_row("[bold]together", f"[bold]{outcomes.refused.total()}", "")
    console.print(refused)


def compare(expected: Expected, rows: Iterable[StockRow], outcomes: Outcomes) -> Iterator[str]:
    """Yield each difference between what must come out and what did, as a line to read."""
    if outcomes.position != expected.events:
        yield f"events: expected {expected.events}, found {outcomes.position}"
    found = {row.id: row for row in rows}
    for item_id in sorted(expected.items.keys() | found.keys()):
        item, row = expected.items.get(item_id), found.get(item_id)
        wanted = item and (item.name, item.count, item.is_active, item.version)
        is_there = row and (row.name, row.count, row.is_active, row.version)
        if wanted != is_there:
            yield f"{item_id}: expected {wanted or 'nothing'}, found {is_there or 'nothing'}"
    for reason in sorted(expected.refused.keys() | outcomes.refused.keys()):
        if expected.refused[reason] != outcomes.refused[reason]:
            yield (
                f"refused for {reason}: expected {expected.refused[reason]},"
                f" found {outcomes.refused[reason]}"
            )


def _until(deadline_s: float, worker: subprocess.Popen[bytes], what: str) -> Iterator[None]:
    """Yield again and again until the deadline.

    Raises:
        Failed: the deadline has come, or the worker has ended.
    """
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise Failed(f"The worker has ended with {worker.returncode}.")
        yield
    raise Failed(f"Waited {deadline_s:.0f} s for {what}.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sample_app.demo", description=__doc__)
    parser.add_argument("--orders", type=Path, default=SHOP, help="another file of orders")
    parser.add_argument("--directory", type=Path, help="keep everything there; must be new")
    return parser


if __name__ == "__main__":
    sys.exit(main())
