"""`celery -A app cqrs queues`: the messages that wait, run, or are stuck, per queue."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import Holding, QueueInspector
from .broker import broker_channel, is_reply_queue
from .stored import head_of
from .table import plain, print_table

#: The time at which an event was recorded, in its body; its head has no time.
_RECORDED_AT = re.compile(rb'"timestamp": ?"([^"]+)"')

#: The keys of a row, each with its column head.
_COLUMNS = {
    "queue": "queue",
    "ready": "ready",
    "waiting": "waiting",
    "retrying": "retrying",
    "blocked": "blocked",
    "delayed": "delayed",
    "prefetched": "prefetched",
    "running": "running",
    "dead": "dead",
    "consumers": "consumers",
    "oldest_s": "oldest",
    "oldest_running_s": "oldest run",
}

#: The same for each holder; the consumer's name includes its host and process id.
_HOLDER_COLUMNS = {
    "queue": "queue",
    "consumer": "consumer",
    "worker": "worker",
    "slots": "slots",
    "messages": "messages",
    "running": "running",
    "prefetched": "prefetched",
    "lease_s": "lease ends in",
}


@click.command(cls=CeleryCommand, name="queues")
@click.option("--delayed", is_flag=True, help="List the messages that wait for their time.")
@click.option("--holders", is_flag=True, help="List consumers, their messages and their leases.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def queues(context: click.Context, delayed: bool, holders: bool, as_json: bool) -> None:
    """Show each queue's waiting, prefetched, running and stuck messages, and its consumers."""
    with broker_channel(context) as channel:
        inspector = QueueInspector(channel.queue)
        names = [n for n in inspector.names() if not is_reply_queue(context.obj.app, n)]
        if delayed:
            rows = [row for name in names for row in _delayed(inspector, name)]
        else:
            holdings, paused = inspector.holdings(), inspector.paused()
            rows = [
                {**_row(inspector, name, holdings), "paused": name in paused}
                for name in sorted({*names, *paused})
            ]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif delayed:
        print_table(
            ("queue", "due in", "task", "id", "sequence"),
            [
                (r["queue"], f"{r['due_in_s']:.1f} s", r["task"], r["id"], r["sequence"])
                for r in rows
            ],
        )
    elif holders:
        _show_holders(rows)
    else:
        _show(rows)


def _show(rows: Sequence[dict[str, Any]]) -> None:
    shown = [{**row, "consumers": len(row["consumers"])} for row in rows]
    print_table(list(_COLUMNS.values()), [[_cell(row[name]) for name in _COLUMNS] for row in shown])
    if left := [row["queue"] for row in rows if not row["consumers"] and _undone(row)]:
        click.echo(f"\nno worker consumes: {', '.join(map(plain, left))}")
    if paused := [row["queue"] for row in rows if row["paused"]]:
        click.echo(f"\npaused: {', '.join(map(plain, paused))}")


def _show_holders(rows: Sequence[dict[str, Any]]) -> None:
    holders = [
        {**holder, "queue": row["queue"], "lease_s": f"{holder['lease_s']:.1f} s"}
        for row in rows
        for holder in row["holders"]
    ]
    print_table(
        list(_HOLDER_COLUMNS.values()),
        [[_cell(holder[name]) for name in _HOLDER_COLUMNS] for holder in holders],
    )


def _undone(row: dict[str, Any]) -> int:
    """Return how many messages of a queue workers have yet to finish."""
    names = ("ready", "waiting", "retrying", "blocked", "delayed", "in_flight")
    return sum(int(row[name]) for name in names)


def _row(inspector: QueueInspector, name: str, holdings: Sequence[Holding]) -> dict[str, Any]:
    return {
        **inspector.look(name, holdings)._asdict(),
        "oldest_s": _oldest_s(inspector.oldest(name, holdings)),
        "oldest_prefetched_s": _oldest_s(inspector.oldest_prefetched(name, holdings)),
        "oldest_running_s": _oldest_s(inspector.oldest_running(name, holdings)),
        "consumers": sorted(one.consumer for one in holdings if one.consumes(name)),
        "holders": [_holder(one, name) for one in holdings if one.messages[name]],
    }


def _holder(holding: Holding, queue: str) -> dict[str, Any]:
    messages, running = holding.messages[queue], holding.running[queue]
    return {
        "consumer": holding.consumer,
        "worker": holding.about.worker,
        "host": holding.about.host,
        "pid": holding.about.pid,
        "slots": holding.about.slots,
        "messages": messages,
        "running": running,
        "prefetched": messages - running,
        "lease_s": round(holding.lease_ms / 1000, 1),
    }


def _oldest_s(messages: Sequence[tuple[bytes, bytes]]) -> float | None:
    ages = [_age_s(*message) for message in messages]
    return max((age for age in ages if age is not None), default=None)


def _cell(value: Any) -> object:
    if isinstance(value, float):
        return f"{value:.0f} s"
    return "" if value is None else value


def _delayed(inspector: QueueInspector, name: str) -> list[dict[str, Any]]:
    found = []
    for one in inspector.delayed(name):
        headers = head_of(one.payload, one.body)["headers"]
        found.append(
            {
                "queue": name,
                "due_in_s": round(one.due_in_ms / 1000, 1),
                "task": str(headers.get("task", "?")),
                "id": str(headers.get("id", "?")),
                "sequence": one.sequence,
            }
        )
    return found


def _age_s(payload: bytes, body: bytes) -> float | None:
    """Return for how many seconds a message has been ready to be handled.

    The time counts from its ETA, or else from when it was sent, or else from when its event was
    recorded. None if the ETA is still to come, or no time is known.
    """
    head, recorded = head_of(payload, body), _RECORDED_AT.search(body)
    sent, eta = head["properties"].get("timestamp"), head["headers"].get("eta")
    try:
        if eta is not None:
            since = _seconds(str(eta))
        elif sent is not None:
            since = float(sent)
        elif recorded is not None:
            since = _seconds(recorded[1].decode())
        else:
            return None
        age_s = round(time.time() - since, 1)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if eta is not None and age_s < 0 else age_s


def _seconds(text: str) -> float:
    """Return an ISO time as seconds; without an offset it is UTC, as Celery writes it."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
