"""Measure a load with a snapshot, and with the cache, beside one without; and `eventsourcing`'s.

    python -m benchmarks.snapshots [--rounds 15] [--events 10000] [--json FILE] [--peer PYTHON]

An aggregate has 10,000 events; its snapshot has all but the last 5. A cached one has no newer
event. Servers run here, with their defaults; each party is a process of its own, `python -O`, one
at work at a time. A round measures every party and every kind, in an order that is turned about
each time; a ratio is of one round, rows show the median, and the least and most. The state is a
counter and a dict: of 10 entries, and of 1,000, which have to be copied for every caller.

`eventsourcing` has no store in Redis. PYTHON is an interpreter that has it, with psycopg.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.event_store import has_peer
from tests.nodes import REPOSITORY, RedisNode
from tests.postgres import PostgresNode

OURS, THEIRS = "ours", "eventsourcing"
KINDS = ("plain", "snapshot", "cached")

#: How often a kind is loaded in one measurement.
COUNTS = {"plain": 2, "snapshot": 100, "cached": 100}

#: At least so many times as fast as without is a load with a snapshot.
BAR = 50.0

Samples = dict[tuple[str, int, str, str], list[float]]


class Party:
    """Be one process that loads."""

    def __init__(self, python: str, name: str, url: str, *numbers: int) -> None:
        self.process = subprocess.Popen(
            [python, "-O", "-m", "benchmarks._snapshots_party", name, url, *map(str, numbers)],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def load(self, kind: str) -> float:
        """Return the seconds of one load."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{kind} {COUNTS[kind]}\n")
        self.process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def measure(options: argparse.Namespace, folder: Path) -> Samples:
    """Fill the stores, and run every round."""
    samples: Samples = {}
    redis, postgres = RedisNode(folder), PostgresNode(folder)
    parties: dict[tuple[str, int, str], Party] = {}
    peers = {OURS: sys.executable}
    if has_peer(options.peer):
        peers[THEIRS] = options.peer
    else:
        print(f"{options.peer} has no eventsourcing: measured without it", file=sys.stderr)
    try:
        redis.start()
        postgres.start()
        for entries in (10, 1000):
            for name, python in peers.items():
                place = f"{name}_{entries}"
                urls = {
                    "sqlite": f"sqlite:///{folder / place}.db"
                    if name == OURS
                    else f"sqlite://x/{folder / place}.db",
                    "postgresql": postgres.create_database(place),
                }
                if name == OURS:
                    urls["redis"] = redis.url_of(0 if entries == 10 else 1)
                for engine, url in urls.items():
                    parties[engine, entries, name] = Party(
                        python, name, url, options.events, 5, entries
                    )
        cases = [(key, kind) for key in parties for kind in KINDS]
        for number in range(-1, options.rounds):
            turn = number % len(cases)
            for key, kind in cases[turn:] + cases[:turn]:
                seconds = parties[key].load(kind)
                if number >= 0:  # the first round warms up
                    samples.setdefault((*key, kind), []).append(seconds)
    finally:
        for party in parties.values():
            party.close()
        redis.teardown()
        postgres.teardown()
    return samples


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """Return medians and spreads: times, and each round's ratios."""
    rows = []
    for (engine, entries, name, kind), values in samples.items():
        row: dict[str, Any] = {
            "engine": engine, "entries": entries, "party": name, "kind": kind,
            "ms": spread([value * 1000 for value in values]),
        }  # fmt: skip
        if kind != "plain":
            row["times as fast as plain"] = ratio(samples[engine, entries, name, "plain"], values)
        other = samples.get((engine, entries, THEIRS, kind))
        if name == OURS and other:
            row["times as fast as eventsourcing"] = ratio(other, values)
        rows.append(row)
    return rows


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Return the spread of the rounds' ratios."""
    return spread([one / other for one, other in zip(slow, fast, strict=True)])


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(value: dict[str, float] | None) -> str:
    """Return a spread as text."""
    if value is None:
        return ""
    digits = 0 if value["median"] >= 1000 else 1 if value["median"] >= 10 else 2
    numbers = (f"{value[name]:,.{digits}f}" for name in ("median", "least", "most"))
    return "{} ({}-{})".format(*numbers)


def main() -> None:
    """Measure, and print a table in markdown; the exit code is 1 if the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snapshots", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--peer", default=sys.executable, help="a Python that has eventsourcing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        samples = measure(options, Path(folder))
    rows = rows_of(samples)
    columns = ("engine", "entries", "party", "kind")
    times = ("ms", "times as fast as plain", "times as fast as eventsourcing")
    print(f"Python {platform.python_version()}, {options.rounds} rounds\n")
    print(f"| {' | '.join((*columns, *times))} |\n|{'---|' * 7}")
    for row in rows:
        cells = [str(row[name]) for name in columns] + [shown(row.get(name)) for name in times]
        print(f"| {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")
    for row in rows:
        if row["party"] == OURS and row["kind"] == "snapshot":
            median = row["times as fast as plain"]["median"]
            if median < BAR:
                sys.exit(f"{row['engine']}: {median:.1f} times as fast, expected {BAR:g}")


if __name__ == "__main__":
    main()
