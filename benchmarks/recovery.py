"""Measure how long messages wait to run again when every worker of their host was killed.

    python -m benchmarks.recovery [--rounds 200] [--lease 3] [--json FILE] [--short]

In a round two solo workers have taken some plain tasks of a queue, and run one each; more of them
stand behind. All workers are killed (SIGKILL), and at once a new one is started: on the same host,
or, in a second run, on another one, whose kernel has another boot id. It is forked from a process
that has imported Celery, so what is measured is the queue's part. The time is from the kill until
the last of the taken tasks runs again.

The bar is on the 99th percentile: 2 s on the same host; elsewhere a lease and a third, and 2 s. On
the same host no task may run before one that was taken from in front of it.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._report import OURS, Bar, Report, parse, parser_of, server_version
from tests.chaos.lab import ALONE, QUEUE, Lab
from tests.chaos.nursery import Child, Nursery
from tests.waiting import wait_until

#: Where the new worker is, and what runs it.
PLACES = {
    "on the same host": "tests.chaos.nursery:run_worker",
    "elsewhere": "benchmarks._recovery_app:run_elsewhere",
}

WORKERS, PREFETCH = 2, 3
#: More than the workers take: the rest stands behind.
TASKS = 16

#: Seconds beyond what is promised, after which a round has failed.
PATIENCE_S = 60.0

SHORT = {"rounds": 20}

AHEAD = "rounds in which a task ran before one that was taken from in front of it"


def wait_of(place: str, what: str) -> str:
    """Return the name of a row."""
    return f"new worker {place}: until all run again, {what}, s"


class Host:
    """A server, and a host whose workers are killed again and again."""

    def __init__(self, lab: Lab, nursery: Nursery, place: str) -> None:
        self.lab, self._nursery, self._place = lab, nursery, place
        self._number = 0

    def start(self, function: str) -> Child:
        """Start a worker; it is ready when it says so."""
        self._number += 1
        settings = self.lab.settings(worker_prefetch_multiplier=PREFETCH)
        env = {"LAB_FOLDER": str(self.lab.folder), "LAB_CONF": json.dumps(settings)}
        name = f"worker-{self._number}@test"
        argv = ["--pool", "solo", "--queues", QUEUE, "--hostname", name, *ALONE]
        return self._nursery.start(function, "lab_app", *argv, "--loglevel", "INFO", env=env)

    def run_round(self, number: int) -> tuple[float, bool]:
        """Return the seconds of a round, and whether the order was kept."""
        lab, first = self.lab, number * 100
        gate, tasks = f"gate-{number}", range(first, first + TASKS)
        before = int(lab.client.get("cq:id") or 0)
        # First the tasks: a solo worker takes what it prefetches before it runs the first of them.
        for task in tasks:
            lab.send(task, kwargs={"gate": gate})
        workers = [self.start(PLACES["on the same host"]) for _ in range(WORKERS)]
        wait_until(lambda: len(lab.journal.starts()) == WORKERS, 20, "each to run a task")
        held = {first + message - before - 1 for message in self._held()}
        assert WORKERS < len(held) < TASKS, held
        lab.journal.clear()
        killed_at = time.monotonic()
        for worker in workers:
            worker.send(signal.SIGKILL)
        for worker in workers:
            worker.wait_gone()
        lab.open(gate)
        new = self.start(PLACES[self._place])
        lab.wait_done(*held, deadline_s=lab.lease_s * 4 / 3 + PATIENCE_S)
        lab.wait_empty()
        again = [line for line in lab.journal.lines() if line.event == "start"]
        took_s = max(line.at for line in again if line.n in held) - killed_at
        new.kill()
        lab.journal.clear()
        order = [line.n for line in again if line.pid == new.pid]
        return took_s, order == sorted(order)

    def _held(self) -> set[int]:
        """Return the messages that consumers hold."""
        names: Any = self.lab.client.zrange("cq:consumers", 0, -1)
        return set().union(*(self.lab.queue.in_flight(name.decode()) for name in names))


def measure(report: Report, folder: Path, place: str, options: Any) -> None:
    """Run every round with the new worker at one place."""
    folder.mkdir()
    with (
        Lab(folder, lease_s=options.lease, max_deliveries=1_000) as lab,
        Nursery(folder) as nursery,
    ):
        report.versions["server"] = server_version(lab.client)
        host = Host(lab, nursery, place)
        waits, disorders = [], 0
        for number in range(options.rounds):
            took_s, is_in_order = host.run_round(number)
            waits.append(took_s)
            disorders += not is_in_order
            print(f"{place}: {number + 1} of {options.rounds}: {took_s:.2f} s", file=sys.stderr)
    waits.sort()
    for what, part in (("p50", 0.5), ("p99", 0.99)):
        report.note(wait_of(place, what), OURS, waits[int(len(waits) * part)])
    report.note(wait_of(place, "longest"), OURS, waits[-1])
    if place == "on the same host":
        report.note(AHEAD, OURS, disorders)


def main() -> int:
    """Measure, and report."""
    parser = parser_of("recovery", __doc__, rounds=200)
    parser.add_argument("--lease", type=float, default=3.0, help="of every worker, in seconds")
    parser.add_argument("--only", choices=[*PLACES], help="with the new worker there alone")
    options = parse(parser, SHORT)
    bars = {
        wait_of("on the same host", "p99"): [Bar("<=", 2.0)],
        wait_of("elsewhere", "p99"): [Bar("<=", round(options.lease * 4 / 3 + 2, 2))],
        AHEAD: [Bar("<=", 0)],
    }
    report = Report("recovery", options, bars)
    with tempfile.TemporaryDirectory() as folder:
        for number, place in enumerate([options.only] if options.only else PLACES):
            with report.attempt(place):
                measure(report, Path(folder) / str(number), place, options)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
