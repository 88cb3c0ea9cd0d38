"""Measure a load with a snapshot, and with the cache, beside one without; and `eventsourcing`'s.

    python -m benchmarks.snapshots [--rounds 15] [--events 10000] [--json FILE] [--short]
        [--peer PYTHON]

An aggregate has 10,000 events; its snapshot has all but the last 5. A cached one has no newer
event. Servers run here, with their defaults; each party is a process of its own, `python -O`, one
at work at a time. A round measures every party and every kind, in an order that is turned about
each time; a ratio is of one round, rows show the median, and the least and most. The state is a
counter and a dict: of 10 entries, and of 1,000, which have to be copied for every caller.

`eventsourcing` has no store in Redis. PYTHON is an interpreter that has it, with psycopg; without
one, an environment is made for it and thrown away.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._peer import PEER as THEIRS
from benchmarks._peer import peer_python
from benchmarks._report import OURS, Bar, Report, parse, parser_of, postgres_version, server_version
from tests.nodes import REPOSITORY, RedisNode
from tests.postgres import PostgresNode

KINDS = ("plain", "snapshot", "cached")
ENTRIES = (10, 1_000)

#: A load of all events, which the others are compared with.
PLAIN = "all events"

#: How often a kind is loaded in one measurement.
COUNTS = {"plain": 2, "snapshot": 100, "cached": 100}

#: A load with a snapshot takes at most so much of the time of one without.
BAR = Bar("<=", 1 / 50, PLAIN)

SHORT = {"rounds": 3}


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


def title_of(engine: str, entries: int, kind: str) -> str:
    """Return the name of a row."""
    words = {"plain": "all events", "snapshot": "from a snapshot", "cached": "cached"}
    return f"{engine}, {entries:,} entries, {words[kind]}, ms"


#: Those of each row that has some.
BARS = {
    title_of(engine, entries, "snapshot"): [BAR]
    for engine in ("sqlite", "postgresql", "redis")
    for entries in ENTRIES
}


def measure(options: argparse.Namespace, folder: Path, peer: str | None, report: Report) -> None:
    """Fill the stores, and run every round."""
    redis, postgres = RedisNode(folder), PostgresNode(folder)
    parties: dict[tuple[str, int, str], Party] = {}
    peers = {OURS: sys.executable} | ({THEIRS: peer} if peer else {})
    try:
        redis.start()
        postgres.start()
        redis.wait_ready()
        with redis.client() as client:
            report.versions["server"] = server_version(client)
        report.versions["PostgreSQL"] = postgres_version(postgres)
        for entries in ENTRIES:
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
            with report.attempt("a round"):
                found = {
                    (*key, kind): parties[key].load(kind) * 1000
                    for key, kind in cases[turn:] + cases[:turn]
                }
                if number >= 0:  # the first round warms up
                    _note(report, found)
            if report.failed:
                break
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    finally:
        for party in parties.values():
            party.close()
        redis.teardown()
        postgres.teardown()


def _note(report: Report, found: dict[tuple[str, int, str, str], float]) -> None:
    for engine in ("sqlite", "postgresql", "redis"):
        for entries in ENTRIES:
            for kind in KINDS:
                title = title_of(engine, entries, kind)
                report.note(title, OURS, found[engine, entries, OURS, kind])
                if kind != "plain":
                    report.note(title, PLAIN, found[engine, entries, OURS, "plain"])
                other = found.get((engine, entries, THEIRS, kind))
                if other is not None:
                    report.note(title, THEIRS, other)


def main() -> int:
    """Measure, and report; the exit code of the long form is 1 also if the bar is missed."""
    parser = parser_of("snapshots", __doc__, rounds=15)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--peer", help="a Python that has eventsourcing; one is made without it")
    options = parse(parser, SHORT)
    report = Report("snapshots", options, BARS)
    with (
        peer_python(options.peer, report) as peer,
        tempfile.TemporaryDirectory() as folder,
    ):
        Path(folder).chmod(0o755)
        measure(options, Path(folder), peer, report)
    code = report.finish()
    missed = [row["measure"] for row in report.rows() for bar in row["bars"] if not bar["met"]]
    if missed and not options.short:
        print(f"missed: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
