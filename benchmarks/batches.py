"""Measure a function that takes 500 events at once, beside one that takes each event alone.

    python -m benchmarks.batches [--rounds 3] [--events 40000] [--json FILE] [--short]

Events of 100 aggregates wait in Redis; a worker of two prefork processes writes each into a row of
a SQLite read model, one transaction a task. The rate goes from the first task's begin to the last
row's commit, as the read model itself shows it. A round measures both, in an order that is turned
about each time; a ratio is of one round, rows show the median, and the least and most. Each event
must be there once, or the row has failed.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _batch_app as bench
from benchmarks._report import OURS, Bar, Report, parse, parser_of, server_version
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.workers.registration import subscriber_of
from tests.nodes import REPOSITORY, RedisNode, WorkerNode

KINDS = ("single", "batch")
AGGREGATES = 100

ONE_BY_ONE = "one by one"
MEASURE = f"up to {bench.BATCH} events a task, events/s"

#: A rate, not a ratio: whether it is met depends on the machine.
BARS = {MEASURE: [Bar(">=", 20_000)]}

SHORT = {"rounds": 3, "events": 20_000}

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
                raise RuntimeError(f"{count} of {events} events\n{worker.log_tail()}")
            time.sleep(0.02)
        ended = time.time()
    finally:
        worker.teardown()
    ((began,),) = model.execute("SELECT min(began) FROM counted")
    ((streams, least, most),) = model.execute(
        "SELECT count(DISTINCT id), min(version), max(version) FROM counted"
    )
    if (streams, least, most) != (AGGREGATES, 1, events // AGGREGATES):
        raise RuntimeError(f"the read model is wrong: {streams} streams, versions {least}-{most}")
    return float(events / (ended - began))


def main() -> int:
    """Run the rounds, and report."""
    parser = parser_of("batches", __doc__, rounds=3)
    parser.add_argument("--events", type=int, default=40_000, help="for batches; singles: a tenth")
    parser.add_argument("--only", choices=KINDS, help="measure this alone")
    options = parse(parser, SHORT)
    report = Report("batches", options, BARS)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        (scratch / "redis").mkdir()
        node = RedisNode(scratch / "redis", appendonly=False)
        node.start()
        try:
            node.wait_ready()
            with node.client() as client:
                report.versions["server"] = server_version(client)
            bench.app.conf.broker_url = node.url
            for number in range(options.rounds):
                if report.has_failed(MEASURE):
                    break
                with report.attempt(MEASURE):
                    for kind in KINDS if number % 2 else reversed(KINDS):
                        if options.only not in (None, kind):
                            continue
                        folder = scratch / f"{kind}-{number}"
                        folder.mkdir()
                        os.environ["BENCH_OUT"] = str(folder)
                        events = options.events if kind == "batch" else options.events // 10
                        rate = measure(kind, events, node, folder)
                        report.note(MEASURE, OURS if kind == "batch" else ONE_BY_ONE, rate)
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        finally:
            bench.app.close()
            node.teardown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
