"""`celery -A app cqrs queues`: what waits, what is running, what is stuck."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
from celery.bin.base import CeleryCommand

from ..queue.inspection import Holding, QueueInspector
from ..transport.wire import split
from .broker import broker_channel, is_reply_queue
from .table import print_table

#: When an event was recorded, in its body; its head has no time.
_RECORDED_AT = re.compile(rb'"timestamp": ?"([^"]+)"')

#: A row's keys, each with the head of its column.
_COLUMNS = {
    "queue": "queue",
    "ready": "ready",
    "waiting": "waiting",
    "retrying": "retrying",
    "blocked": "blocked",
    "delayed": "delayed",
    "in_flight": "in flight",
    "dead": "dead",
    "oldest_s": "oldest",
}


@click.command(cls=CeleryCommand, name="queues")
@click.option("--delayed", is_flag=True, help="List what waits for its time.")
@click.option("--holders", is_flag=True, help="List who holds what, and how long its lease lasts.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def queues(context: click.Context, delayed: bool, holders: bool, as_json: bool) -> None:
    """Show per queue what is ready, waiting, delayed, in flight, blocked and dead."""
    with broker_channel(context) as channel:
        inspector = QueueInspector(channel.queue)
        names = [n for n in inspector.names() if not is_reply_queue(context.obj.app, n)]
        if delayed:
            rows = [row for name in names for row in _delayed(inspector, name)]
        else:
            holdings = inspector.holdings()
            rows = [_row(inspector, name, holdings) for name in names]
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
        print_table(
            ("queue", "consumer", "messages", "lease ends in"),
            [
                (row["queue"], h["consumer"], h["messages"], f"{h['lease_s']:.1f} s")
                for row in rows
                for h in row["holders"]
            ],
        )
    else:
        print_table(
            list(_COLUMNS.values()),
            [[_cell(row[name]) for name in _COLUMNS] for row in rows],
        )


def _row(inspector: QueueInspector, name: str, holdings: Sequence[Holding]) -> dict[str, Any]:
    ages = [_age_s(*message) for message in inspector.oldest(name)]
    return {
        **inspector.look(name, holdings)._asdict(),
        "oldest_s": max((age for age in ages if age is not None), default=None),
        "holders": [
            {
                "consumer": holding.consumer,
                "messages": holding.messages[name],
                "lease_s": round(holding.lease_ms / 1000, 1),
            }
            for holding in holdings
            if holding.messages[name]
        ],
    }


def _cell(value: Any) -> object:
    if isinstance(value, float):
        return f"{value:.0f} s"
    return "" if value is None else value


def _delayed(inspector: QueueInspector, name: str) -> list[dict[str, Any]]:
    found = []
    for one in inspector.delayed(name):
        headers = _head(one.payload, one.body).get("headers") or {}
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
    """Return how long ago a message was sent, or its event recorded; None if nothing says so."""
    sent = (_head(payload, body).get("properties") or {}).get("timestamp")
    recorded = _RECORDED_AT.search(body)
    try:
        if sent is not None:
            return round(time.time() - float(sent), 1)
        if recorded is not None:
            at = datetime.fromisoformat(recorded[1].decode())
            return round(time.time() - at.timestamp(), 1)
    except (TypeError, ValueError):
        pass
    return None


def _head(payload: bytes, body: bytes) -> dict[str, Any]:
    try:
        head = json.loads(split(payload, body)[0])
    except ValueError:
        return {}
    return head if isinstance(head, dict) else {}
