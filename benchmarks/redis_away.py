"""Measure how long a command takes in a SQL store while Redis, the broker, does not answer.

    python -m benchmarks.redis_away [--rounds 5] [--commands 1000] [--json FILE] [--short]

Commands are carried out by `execute`, each to an aggregate of its own, on a store in SQLite and on
one in PostgreSQL. A commit there wakes the relay, by Redis, and may not wait for that. A round
measures every way to be away after a run in which Redis answers:

    frozen      the server has stopped (SIGSTOP); the kernel takes connections and bytes
    refused     nobody listens
    swallowed   connections and requests are taken, no answer comes

The ratio is of the 99th percentile, to Redis that answers, in one round. The bar is on the
difference: 250 ms.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks._report import OURS, Bar, Report, parse, parser_of, postgres_version, server_version
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from tests import yard
from tests.nodes import RedisNode
from tests.postgres import PostgresNode, find_postgres
from tests.proxy import Proxy

ANSWERS = "Redis answers"
STORES = ("sqlite", "postgresql")
WAYS = ("frozen", "refused", "swallowed")
SHORT = {"rounds": 3, "commands": 300}

#: Milliseconds that the 99th percentile may be above that with a Redis that answers.
MOST_MS = 250.0


def more(store: str, way: str) -> str:
    """Return the name of the row that has the difference."""
    return f"{store}, {way}, p99 above that with a Redis that answers, ms"


BARS = {more(store, way): [Bar("<=", MOST_MS)] for store in STORES for way in WAYS}


def run(cqrs: Any, count: int, mark: str) -> list[float]:
    """Carry out so many commands; returns the sorted milliseconds of each."""
    took = []
    for number in range(count):
        began = time.perf_counter()
        cqrs.execute(yard.GrowHeap(id=f"{mark}-{number}"))
        took.append((time.perf_counter() - began) * 1000)
    return sorted(took)


def measure(report: Report, options: argparse.Namespace, url: str, name: str) -> None:
    """Run every round on one store."""
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder), appendonly=False)
        try:
            node.start()
            node.wait_ready()
            with node.client() as client:
                report.versions["server"] = server_version(client)
            with Proxy(node.port) as proxy:
                _measure(report, options, url, name, node, proxy)
        finally:
            node.teardown()


def _measure(
    report: Report,
    options: argparse.Namespace,
    url: str,
    name: str,
    node: RedisNode,
    proxy: Proxy,
) -> None:
    app = yard.make_app(proxy.url(), url)
    store = app.cqrs.store
    assert isinstance(store, SqlEventStore)
    create_schema(store)
    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "frozen": (node.freeze, node.thaw),
        "refused": (proxy.refuse, proxy.accept),
        "swallowed": (proxy.silence, proxy.accept),
    }
    try:
        run(app.cqrs, options.commands, "warm")
        for number in range(options.rounds):
            for way in WAYS:
                away, back = ways[way]
                with report.attempt(f"{name}, {way}"):
                    before = run(app.cqrs, options.commands, f"{number}-{way}-answers")
                    away()
                    try:
                        during = run(app.cqrs, options.commands, f"{number}-{way}")
                    finally:
                        back()
                    _note(report, name, way, before, during)
            print(f"{name}: round {number + 1} of {options.rounds}", file=sys.stderr)
    finally:
        store.close()
        app.close()


def _note(report: Report, name: str, way: str, before: list[float], during: list[float]) -> None:
    def percentile(times: list[float], part: float) -> float:
        return times[int(len(times) * part)]

    for title, part in (("p50", 0.5), ("p99", 0.99)):
        measure = f"{name}, {way}, {title}, ms"
        report.note(measure, OURS, percentile(during, part))
        report.note(measure, ANSWERS, percentile(before, part))
    report.note(f"{name}, {way}, slowest, ms", OURS, during[-1])
    report.note(more(name, way), OURS, percentile(during, 0.99) - percentile(before, 0.99))


def main() -> int:
    """Measure, and report."""
    parser = parser_of("redis_away", __doc__, rounds=5)
    parser.add_argument("--commands", type=int, default=1_000, help="of each run")
    options = parse(parser, SHORT)
    report = Report("redis_away", options, BARS)
    with tempfile.TemporaryDirectory() as folder:
        measure(report, options, f"sqlite:///{folder}/events.db", "sqlite")
    if find_postgres() is None:
        report.leave_out("postgresql", "no PostgreSQL found")
        return report.finish()
    with tempfile.TemporaryDirectory() as folder:
        postgres = PostgresNode(Path(folder))
        try:
            postgres.start()
            report.versions["PostgreSQL"] = postgres_version(postgres)
            measure(report, options, postgres.create_database("away"), "postgresql")
        finally:
            postgres.teardown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
