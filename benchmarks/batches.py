"""Measure a function that takes 500 events at once, beside one that takes each event alone.

    python -m benchmarks.batches [--rounds 3] [--events 40000] [--json FILE]

Events of 100 aggregates wait in Redis; a worker of two prefork processes writes each into a row of
a SQLite read model, one transaction a task. The rate goes from the first task's begin to the last
row's commit, as the read model itself shows it. A round measures both, in an order that is turned
about each time; a ratio is of one round, rows show the median, and the least and most. Each event
must be there once, or the benchmark ends.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _batch_app as bench
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.workers.registration import subscriber_of
from tests.chaos.__main__ import server_version
from tests.nodes import REPOSITORY, RedisNode, WorkerNode

KINDS = ("single", "batch")
AGGREGATES = 100

#: Events in one commit, so that preparing takes no longer than measuring.
COMMIT = 50


def prepare(kind: str, events: int) -> None:
    """Register one subscription, and commit events for it."""
    runtime = bench.cqrs.runtime
    store: Any = runtime.store
    for definition in definitions.all():
        if definition.subscription == f"bench.{kind}":
            store.register(subscriber_of(definition, runtime))
    per_aggregate = events // AGGREGATES
    for n in range(AGGREGATES):
        done = 0
        while done < per_aggregate:
            count = min(COMMIT, per_aggregate - done)
            with bench.cqrs.session() as session:
                counter = session.find(bench.Counter, str(n)) or bench.Counter(str(n))
                for i in range(count):
                    counter.record(bench.Counted(count=done + i, note="x" * 200))
                session.add(counter)
            done += count


def measure(kind: str, events: int, node: RedisNode, folder: Path) -> float:
    """Return the events per second of a worker that handles all that waits."""
    with node.client() as client:
        client.flushall()
    prepare(kind, events)
    worker = WorkerNode(
        folder,
        "benchmarks._batch_app",
        name=f"worker-{kind}",
        queues=[f"bench.{kind}"],
        concurrency=2,
        arguments=["--without-mingle", "--without-gossip", "--without-heartbeat"],
        env={"BENCH_BROKER": node.url, "BENCH_OUT": str(folder), "PYTHONPATH": str(REPOSITORY)},
        loglevel="WARNING",
    )
    model = bench.read_model(kind)
    worker.start()
    try:
        deadline = time.monotonic() + 600
        while True:
            ((count,),) = model.execute("SELECT count(*) FROM counted")
            if count == events:
                break
            if time.monotonic() > deadline or worker.status != "running":
                raise SystemExit(
                    f"{count} of {events} events after 10 minutes\n{worker.log_tail()}"
                )
            time.sleep(0.02)
        ended = time.time()
    finally:
        worker.teardown()
    ((began,),) = model.execute("SELECT min(began) FROM counted")
    ((streams, least, most),) = model.execute(
        "SELECT count(DISTINCT id), min(version), max(version) FROM counted"
    )
    if (streams, least, most) != (AGGREGATES, 1, events // AGGREGATES):
        raise SystemExit(f"the read model is wrong: {streams} streams, versions {least}-{most}")
    return float(events / (ended - began))


def spread(values: list[float], digits: int = 0) -> str:
    """Return the median, and the least and most."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f}-{high:,.{digits}f})"


def main() -> None:
    """Run the rounds, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=40_000, help="for batches; singles: a tenth")
    parser.add_argument("--only", choices=KINDS, help="measure this alone")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        (scratch / "redis").mkdir()
        node = RedisNode(scratch / "redis", appendonly=False)
        node.start()
        try:
            node.wait_ready()
            with node.client() as client:
                version = server_version(client)
            bench.app.conf.broker_url = node.url
            for number in range(options.rounds):
                for kind in KINDS if number % 2 else reversed(KINDS):
                    if options.only not in (None, kind):
                        continue
                    folder = scratch / f"{kind}-{number}"
                    folder.mkdir()
                    os.environ["BENCH_OUT"] = str(folder)
                    events = options.events if kind == "batch" else options.events // 10
                    rates[kind].append(measure(kind, events, node, folder))
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        finally:
            bench.app.close()
            node.teardown()
    print(f"{options.rounds} rounds, {options.events:,} events; {version}, Python "
          f"{platform.python_version()}, {os.cpu_count()} cores\n")  # fmt: skip
    print("| a task takes | events/s |\n|---|---|")
    for kind in KINDS:
        if rates[kind]:
            takes = "1 event" if kind == "single" else f"up to {bench.BATCH} events"
            print(f"| {takes} | {spread(rates[kind])} |")
    if all(rates.values()):
        ratios = [b / s for s, b in zip(rates["single"], rates["batch"], strict=True)]
        print(f"| ratio | {spread(ratios, 1)} |")
    if options.json:
        options.json.write_text(json.dumps({"rates": rates}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
