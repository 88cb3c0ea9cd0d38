"""Measure what each kind of lock costs a command: alone, and with 32 writers of one aggregate.

    python -m benchmarks.locks [--rounds 7] [--commands 256] [--writers 32] [--json FILE]
        [--short]

Commands are carried out by `execute`, from threads, on a Redis server of the benchmark's own,
without persistence, which keeps the events too. Each appends one event; alone, to an aggregate that
has few; with many writers, all to one, and the handler works for `--work-ms` between its read and
its commit, so that they meet.

A round measures every kind after the other, in an order that is turned about each time, on an
emptied server; a ratio is of one round, to `lock=None`. Rows show the median, and the least and
most. With others in the way, a command may fail with ConcurrencyError in the end: then it is
executed again until it is done, as a caller would, and counted. So are the effects: as many as
commands.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from celery import Celery

from benchmarks._report import OURS, Report, parse, parser_of, server_version
from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler
from cqrs_celery.backends.redis.locks import RedisLocks
from cqrs_celery.errors import ConcurrencyError, LockTimeout
from cqrs_celery.store.stream import StreamName
from tests.nodes import RedisNode

KINDS = ("None", "on_conflict", "always")
NO_LOCK = "lock=None"
ALONE_RATE = "locks taken and given back by one thread, 1/s"

#: Figures of a run, and their titles.
TITLES = {
    "rate": "commands/s",
    "p50": "p50, ms",
    "p99": "p99, ms",
    "failed": "failures a command",
    "redis": "round trips a command",
}

SHORT = {"rounds": 3}


class Happened(Event, name="locks.happened"):
    pass


class Thing(Aggregate, name="LockedThing"):
    pass


class Never(Command, name="locks.never", aggregate=Thing, key="id"):
    id: str


class OnConflict(Command, name="locks.on_conflict", aggregate=Thing, key="id"):
    id: str


class Always(Command, name="locks.always", aggregate=Thing, key="id"):
    id: str


work_s = 0.0


def happen(command: Any, session: Session) -> None:
    thing = session.find(Thing, command.id)
    if thing is None:
        thing = Thing(command.id)
        session.add(thing)
    if work_s:
        time.sleep(work_s)
    thing.record(Happened())


command_handler(Never, lock=None)(happen)
command_handler(OnConflict, lock="on_conflict", lock_wait_s=60)(happen)
command_handler(Always, lock="always", lock_wait_s=60)(happen)
CLASSES: dict[str, type[Any]] = {"None": Never, "on_conflict": OnConflict, "always": Always}


def run_writers(
    cqrs: CQRS, client: Any, kind: str, *, commands: int, writers: int
) -> dict[str, float]:
    """Carry out so many commands by so many threads; returns figures."""
    cls = CLASSES[kind]
    failed = [0] * writers
    slowest: list[float] = []

    def write(writer: int) -> list[float]:
        times = []
        for number in range(commands // writers):
            name = "one" if writers > 1 else f"few-{number // 8}"
            started = time.perf_counter()
            while True:
                try:
                    cqrs.execute(cls(id=name))
                    break
                except (ConcurrencyError, LockTimeout):
                    failed[writer] += 1
            times.append(time.perf_counter() - started)
        return times

    before = round_trips_of(client)
    started = time.perf_counter()
    with ThreadPoolExecutor(writers) as threads:
        for times in threads.map(write, range(writers)):
            slowest += times
    seconds = time.perf_counter() - started
    count = commands // writers * writers
    effects = len(cqrs.store.read_all(limit=count * 2))
    assert effects == count, f"{kind}: {effects} effects of {count} commands"
    slowest.sort()
    return {
        "rate": count / seconds,
        "p50": slowest[len(slowest) // 2] * 1000,
        "p99": slowest[int(len(slowest) * 0.99)] * 1000,
        "failed": sum(failed) / count,
        "redis": (round_trips_of(client) - before) / count,
    }


def round_trips_of(client: Any) -> int:
    """Return how often the server has read from a connection: once a round trip."""
    return int(client.info("stats")["total_reads_processed"])


def lock_rate(client: Any, seconds: float = 1.0) -> float:
    """Return how many times a second one thread acquires and releases a lock."""
    locks, count = RedisLocks(lambda: client), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        with locks.hold(StreamName("locks", "LockedThing", "alone"), wait_s=1):
            count += 1
    return count / (time.perf_counter() - started)


def measure(options: argparse.Namespace, node: RedisNode, report: Report) -> None:
    """Run every round."""
    global work_s
    app = Celery("locks", broker=node.url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    cqrs = CQRS(app)
    cases: list[tuple[str, int, float]] = [
        ("alone", 1, 0.0),
        (f"{options.writers} writers", options.writers, options.work_ms / 1000),
    ]
    with node.client() as client:
        report.versions["server"] = server_version(client)
        for case, writers, seconds in cases:
            work_s = seconds
            for number in range(-1, options.rounds):
                if report.has_failed(case):
                    break
                turn = number % len(KINDS)
                with report.attempt(case):
                    found = {}
                    for kind in KINDS[turn:] + KINDS[:turn]:
                        client.flushall()
                        found[kind] = run_writers(
                            cqrs, client, kind, commands=options.commands, writers=writers
                        )
                    if number >= 0:  # the first round warms up
                        _note(report, case, found)
                print(f"{case}: round {number + 1} of {options.rounds}", file=sys.stderr)
        for _ in range(options.rounds):
            with report.attempt(ALONE_RATE):
                report.note(ALONE_RATE, OURS, lock_rate(client))
    cqrs.store.close()
    app.close()


def _note(report: Report, case: str, found: dict[str, dict[str, float]]) -> None:
    for kind in KINDS[1:]:
        for key, title in TITLES.items():
            measure = f'{case}, lock="{kind}", {title}'
            report.note(measure, OURS, found[kind][key])
            report.note(measure, NO_LOCK, found["None"][key])


def main() -> int:
    """Measure, and report."""
    parser = parser_of("locks", __doc__, rounds=7)
    parser.add_argument("--commands", type=int, default=256, help="of each kind in a round")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--work-ms", type=float, default=1.0, help="between read and commit")
    options = parse(parser, SHORT)
    report = Report("locks", options, {})
    logging.disable(logging.WARNING)  # a conflict is a warning, and here there are thousands
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder), appendonly=False)
        try:
            node.start()
            measure(options, node, report)
        finally:
            node.teardown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
