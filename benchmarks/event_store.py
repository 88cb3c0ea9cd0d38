"""Measure the SQL event stores beside `eventsourcing`, and a bare driver, on one server.

    python -m benchmarks.event_store [--json FILE] [--rounds N] [--only NAME] [--peer PYTHON]

PostgreSQL runs here, in a temporary folder, with its own defaults: each commit is forced to the
disk. Every writer is a process of its own, with `python -O`, that has connected and warmed up
before the clock starts. A round measures one party after the other, the order turned about from
round to round; a ratio compares neighbours in time, a row shows the median and the spread.

- append: commits/s of aggregates that are saved, with 1 and 10 events, by 1, 4 and 16 writers; a
  stream gets 10 commits. "store" is below the aggregates: what a commit's rows cost.
- load: aggregates/s of 10, 100, 1,000 events. read: events/s of everything in order, decoded.
- `eventsourcing` has its best settings: functions in the database, sections of 500. PYTHON is an
  interpreter that has it; `make bench` makes one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.nodes import REPOSITORY
from tests.postgres import PostgresNode

OURS, THEIRS, BARE = "ours", "eventsourcing", "bare"

#: A row's name: the ratio to whom, and at least what.
BARS: dict[str, dict[str, float]] = {
    "postgresql: save, 1 event, 1 writers": {THEIRS: 1.6},
    "postgresql: save, 1 event, 16 writers": {THEIRS: 2.0},
    "postgresql: save, 10 events, 1 writers": {THEIRS: 1.6},
    "postgresql: save, 10 events, 16 writers": {THEIRS: 2.0},
    "postgresql: store, 1 event, 1 writers": {BARE: 0.6},
    "postgresql: store, 1 event, 16 writers": {BARE: 0.6},
    "postgresql: store, 10 events, 1 writers": {BARE: 0.6},
    "postgresql: store, 10 events, 16 writers": {BARE: 0.6},
    "postgresql: load 1,000 events": {THEIRS: 3.0},
    "postgresql: read all": {THEIRS: 3.0},
    "sqlite: save, 1 event, 1 writers": {THEIRS: 1.5},
    "sqlite: save, 10 events, 1 writers": {THEIRS: 1.5},
}

Samples = dict[str, dict[str, list[float]]]


class Benchmark:
    """Run the parties' processes, and keep what they took."""

    def __init__(self, engine: str, urls: dict[str, str], peer: str | None) -> None:
        self.engine = engine
        self.urls = urls
        self.peer = peer
        self.parties = [OURS, BARE] + ([THEIRS] if peer else [])
        self.samples: Samples = {}
        self._turn = 0
        for party in self.parties:
            self._run(party, "make", [(0, 0, 0)])

    def append(self, writers: Sequence[int], commits: int) -> None:
        """Measure commits: aggregates saved, and the store alone."""
        for count in writers:
            for events in (1, 10):
                each = commits // count
                plural = "s" if events > 1 else ""
                for what, word in (("save", "save"), ("append", "store")):
                    name = f"{word}, {events} event{plural}, {count} writers"
                    parties = [p for p in self.parties if p != BARE or what == "append"]
                    for party in self._order(parties):
                        parts = [(self._number(), each, events) for _ in range(count)]
                        took = self._run(party, what, parts)
                        self._note(name, party, each * count / took)

    def load(self) -> None:
        """Measure aggregates loaded."""
        for events, count in ((10, 500), (100, 200), (1_000, 40)):
            number, items = self._number(), {}
            parties = [party for party in self.parties if party != BARE]
            for party in parties:
                items[party] = self._fill(party, number, events)
            for party in self._order(parties):
                took = self._run(party, "load", [(number, count, events)], items[party])
                self._note(f"load {events:,} events", party, count / took)

    def read(self) -> None:
        """Measure everything read, in order."""
        for party in self._order([party for party in self.parties if party != BARE]):
            for _ in range(1 if self.samples.get("read all", {}).get(party) else 10):
                self._fill(party, self._number(), 1_000)
            events = self._count(party)
            self._note("read all", party, events / self._run(party, "read_all", [(0, 1, events)]))

    def _count(self, party: str) -> int:
        tables = {OURS: "cqrs_events", THEIRS: "bench_events"}
        if self.engine == "sqlite":
            import sqlite3

            tables[THEIRS] = "stored_events"
            connection: Any = sqlite3.connect(self.urls[party].removeprefix("sqlite:///"))
        else:
            import psycopg2

            connection = psycopg2.connect(self.urls[party])
        cursor = connection.cursor()
        cursor.execute(f"SELECT count(*) FROM {tables[party]}")
        count = int(cursor.fetchone()[0])
        connection.close()
        return count

    def _number(self) -> int:
        self._turn += 1
        return self._turn

    def _order(self, parties: Sequence[str]) -> list[str]:
        shift = self._number() % len(parties)
        return [*parties[shift:], *parties[:shift]]

    def _note(self, name: str, party: str, value: float) -> None:
        values = self.samples.setdefault(f"{self.engine}: {name}", {})
        values.setdefault(party, []).append(value)

    def _popen(
        self, party: str, what: str, part: tuple[int, int, int], item: str = ""
    ) -> subprocess.Popen[str]:
        python = self.peer if party == THEIRS and self.peer else sys.executable
        command = [python, "-O", "-m", "benchmarks._event_store_party", party, what]
        command += [self.urls[party], *map(str, part)]
        return subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "BENCH_ITEM": item, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    def _fill(self, party: str, number: int, events: int) -> str:
        process = self._popen(party, "fill", (number, 1, events))
        said, _ = process.communicate()
        assert process.returncode == 0, party
        return said.split("\n")[0]

    def _run(
        self, party: str, what: str, parts: Sequence[tuple[int, int, int]], item: str = ""
    ) -> float:
        """Let a party do its parts at once; returns the seconds from the first to the last."""
        processes = [self._popen(party, what, part, item) for part in parts]
        if what == "make":
            assert processes[0].wait() == 0
            return 0.0
        for process in processes:
            assert process.stdout is not None
            said = process.stdout.readline()
            assert said == "ready\n", f"{party} {what}: {said}"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        times = []
        for process in processes:
            said, _ = process.communicate()
            assert process.returncode == 0, f"{party} {what}"
            times.append([float(word) for word in said.split()])
        return max(end for _, end in times) - min(began for began, _ in times)


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """Return one row per measure: each party's median and spread, the ratios, the bar."""
    rows = []
    for name, parties in samples.items():
        row: dict[str, Any] = {"measure": name}
        for party, values in parties.items():
            row[party] = _spread(values)
        for other in (THEIRS, BARE):
            if OURS in parties and other in parties:
                ratios = [a / b for a, b in zip(parties[OURS], parties[other], strict=True)]
                row[f"to {other}"] = _spread(ratios)
        for other, bar in BARS.get(name, {}).items():
            if f"to {other}" in row:
                row["bar"] = f">= {bar} x {other}"
                row["met"] = row[f"to {other}"]["median"] >= bar
        rows.append(row)
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table_of(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    heads = ["measure", OURS, THEIRS, BARE, f"to {THEIRS}", f"to {BARE}", "bar", "met"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [row["measure"], *(_cell(row.get(head)) for head in heads[1:6])]
        cells += [row.get("bar", ""), {None: "", True: "yes", False: "no"}[row.get("met")]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: dict[str, float] | None) -> str:
    if value is None:
        return ""
    digits = 0 if value["median"] >= 100 else 2
    return (
        f"{value['median']:,.{digits}f} ({value['least']:,.{digits}f}-{value['most']:,.{digits}f})"
    )


def has_peer(python: str) -> bool:
    """Tell whether an interpreter has `eventsourcing` and its driver."""
    command = [python, "-c", "import eventsourcing.postgres"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Run the rounds, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=("append", "load", "read", "sqlite"))
    parser.add_argument("--commits", type=int, default=1_600, help="of one row, by all its writers")
    parser.add_argument("--peer", default=sys.executable, help="a Python that has eventsourcing")
    parser.add_argument("--json", type=Path, help="write every sample to this file")
    options = parser.parse_args()
    peer = options.peer if has_peer(options.peer) else None
    if peer is None:
        print(f"{options.peer} has no eventsourcing: measured without it", file=sys.stderr)
    samples: Samples = {}
    with tempfile.TemporaryDirectory() as directory:
        node = PostgresNode(Path(directory), settings="max_wal_size = 2GB")
        try:
            node.start()
            urls = {party: node.create_database(party) for party in (OURS, THEIRS, BARE)}
            postgres = Benchmark("postgresql", urls, peer)
            # What is read must be events that can be decoded, and their indexes fresh.
            others = {party: node.create_database(f"{party}_read") for party in urls}
            reading = Benchmark("postgresql", others, peer)
            files = {party: f"sqlite:///{directory}/{party}.db" for party in urls}
            sqlite = Benchmark("sqlite", files, peer)
            for number in range(options.rounds):
                if options.only in (None, "append"):
                    postgres.append((1, 4, 16), options.commits)
                if options.only in (None, "load"):
                    reading.load()
                if options.only in (None, "read"):
                    reading.read()
                if options.only in (None, "sqlite"):
                    sqlite.append((1,), options.commits // 2)
                    sqlite.load()
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            samples = {**postgres.samples, **reading.samples, **sqlite.samples}
        finally:
            node.teardown()
    rows = rows_of(samples)
    print(f"{options.rounds} rounds; Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print(table_of(rows))
    if options.json:
        report = {"rows": rows, "samples": samples}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
