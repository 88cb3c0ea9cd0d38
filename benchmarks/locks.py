"""Measure what each kind of lock costs a command: alone, and with 32 writers of one aggregate.

    python -m benchmarks.locks [--rounds 7] [--commands 256] [--writers 32] [--json FILE]

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
import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler
from cqrs_celery.backends.redis.locks import RedisLocks
from cqrs_celery.errors import ConcurrencyError, LockTimeout
from cqrs_celery.store.stream import StreamName
from tests.chaos.__main__ import server_version
from tests.nodes import RedisNode

KINDS = ("None", "on_conflict", "always")
CELLS = ("None", "on_conflict", "on_conflict, ratio", "always", "always, ratio")


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


class Figures:
    """Collect the rounds of one measure, by the kind of lock."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.values: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def row(self) -> dict[str, Any]:
        """Return medians and spreads, and those of each round's ratio to no lock."""
        row: dict[str, Any] = {"measure": self.name, "unit": self.unit}
        for kind, values in self.values.items():
            row[kind] = spread(values)
            if kind != "None" and all(self.values["None"]):
                pairs = zip(values, self.values["None"], strict=True)
                row[f"{kind}, ratio"] = spread([one / other for one, other in pairs])
        return row


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(value: dict[str, float] | None) -> str:
    """Return a spread as text."""
    if value is None:
        return ""
    numbers = [value[name] for name in ("median", "least", "most")]
    digits = 0 if numbers[0] >= 100 else 2
    return "{} ({}-{})".format(*(f"{number:,.{digits}f}" for number in numbers))


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


def measure(options: argparse.Namespace, node: RedisNode) -> dict[str, Any]:
    """Run every round; returns rows and facts."""
    global work_s
    app = Celery("locks", broker=node.url, set_as_current=False)
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    cqrs = CQRS(app)
    cases: list[tuple[str, int, float]] = [
        ("alone", 1, 0.0),
        (f"{options.writers} writers", options.writers, options.work_ms / 1000),
    ]
    figures: list[Figures] = []
    with node.client() as client:
        for case, writers, seconds in cases:
            measures: dict[str, tuple[str, str]] = {
                "rate": (f"{case}, commands", "1/s"),
                "p50": (f"{case}, p50", "ms"),
                "p99": (f"{case}, p99", "ms"),
                "failed": (f"{case}, failures a command", ""),
                "redis": (f"{case}, round trips a command", ""),
            }
            found = {key: Figures(*names) for key, names in measures.items()}
            work_s = seconds
            for number in range(-1, options.rounds):
                turn = number % len(KINDS)
                for kind in KINDS[turn:] + KINDS[:turn]:
                    client.flushall()
                    values = run_writers(
                        cqrs, client, kind, commands=options.commands, writers=writers
                    )
                    for key, value in values.items():
                        if number >= 0:  # the first round warms up
                            found[key].values[kind].append(value)
            figures += found.values()
        rates = [lock_rate(client) for _ in range(options.rounds)]
        version = server_version(client)
    cqrs.store.close()
    app.close()
    return {
        "facts": {
            "server": version,
            "redis-py": redis.__version__,
            "Python": platform.python_version(),
            "rounds": options.rounds,
            "commands a round": options.commands,
            "a handler's work with writers in the way, ms": options.work_ms,
            "locks taken and given back by one thread, 1/s": shown(spread(rates)),
        },
        "rows": [figure.row() for figure in figures],
    }


def main() -> None:
    """Measure, and print a table in markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.locks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--commands", type=int, default=256, help="of each kind in a round")
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--work-ms", type=float, default=1.0, help="between read and commit")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # a conflict is a warning, and here there are thousands
    with tempfile.TemporaryDirectory() as folder:
        node = RedisNode(Path(folder), appendonly=False)
        try:
            node.start()
            result = measure(options, node)
        finally:
            node.teardown()
    shows: Callable[[dict[str, Any], str], str] = lambda row, key: shown(row.get(key))  # noqa: E731
    print("| | |\n|---|---|")
    for name, value in result["facts"].items():
        print(f"| {name} | {value} |")
    print("\n| measure | None | on_conflict | ratio | always | ratio |\n|---|---|---|---|---|---|")
    for row in result["rows"]:
        name = f"{row['measure']}{', ' if row['unit'] else ''}{row['unit']}"
        cells = [shows(row, key) for key in CELLS]
        print(f"| {name} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
