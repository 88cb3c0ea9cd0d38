"""Measure what it takes to turn stored events into typed values, beside bare msgspec and others.

    python -m benchmarks.decoding [--rounds 5] [--events 1000000] [--json FILE] [--peer PYTHON]

Every event is 300 bytes of JSON: two texts, two numbers, a list, a remark; there are 1,000 of them,
which come again and again. Ours and `eventsourcing` are a process each, `python -O`, one at work at
a time; a round measures every way, in an order that is turned about each time. What counts is the
processor time of the process, whatever else the machine does. A ratio is of one round, a row shows
the median, and the least and most. PYTHON is an interpreter that has `eventsourcing`.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.snapshots import ratio, shown, spread
from tests.nodes import REPOSITORY

OURS, THEIRS = "ours", "eventsourcing"

#: Each party's ways, and what they make of a stored event.
WAYS = {
    "bare msgspec": (OURS, "the class, by its decoder"),
    "Serializer.decode": (OURS, "the class, found by name and version"),
    "recorded event": (OURS, "the class, and the facts of its recording"),
    "upcast": (OURS, "the class, by an upcaster from an old version"),
    "eventsourcing, transcoder": (THEIRS, "a dict, by JSONTranscoder"),
    "eventsourcing, mapper": (THEIRS, "its event, by the mapper in front of that"),
}

BARE = "bare msgspec"

#: Whom each of these is compared with.
COMPARED = {
    "Serializer.decode": "eventsourcing, transcoder",
    "recorded event": "eventsourcing, mapper",
}

#: An upcast takes longer; one in so many is enough.
FEWER = {"upcast": 10}


class Party:
    """Be one process that decodes."""

    def __init__(self, python: str, name: str) -> None:
        self.process = subprocess.Popen(
            [python, "-O", "-m", "benchmarks._decoding_party", name],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._line() == "ready"

    def decode(self, way: str, events: int) -> float:
        """Return the seconds that one event takes."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{events} {way}\n")
        self.process.stdin.flush()
        return float(self._line()) / events

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        """End it."""
        self.process.communicate()


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Run every round; returns the seconds of an event, by way and round."""
    parties = {OURS: Party(sys.executable, OURS)}
    if has_peer(options.peer):
        parties[THEIRS] = Party(options.peer, THEIRS)
    else:
        print(f"{options.peer} has no eventsourcing: measured without it", file=sys.stderr)
    ways = [way for way, (party, _) in WAYS.items() if party in parties]
    samples: dict[str, list[float]] = {way: [] for way in ways}
    try:
        for number in range(-1, options.rounds):
            turn = number % len(ways)
            for way in ways[turn:] + ways[:turn]:
                events = options.events // FEWER.get(way, 1)
                if number < 0:  # the first round warms up
                    events = max(events // 20, 1)
                seconds = parties[WAYS[way][0]].decode(way, events)
                if number >= 0:
                    samples[way].append(seconds)
    finally:
        for party in parties.values():
            party.close()
    return samples


def has_peer(python: str) -> bool:
    """Tell whether an interpreter has `eventsourcing`."""
    command = [python, "-c", "import eventsourcing.persistence"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def rows_of(samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return medians and spreads: events/s, and each round's ratios."""
    rows = []
    for way, seconds in samples.items():
        row: dict[str, Any] = {
            "way": way, "makes": WAYS[way][1],
            "events/s": spread([1 / each for each in seconds]),
            "of bare msgspec": ratio(samples[BARE], seconds),
        }  # fmt: skip
        other = samples.get(COMPARED.get(way, ""))
        if other:
            row["of eventsourcing"] = ratio(other, seconds)
        rows.append(row)
    return rows


def main() -> None:
    """Measure, and print a table in markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoding", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--peer", default=sys.executable, help="a Python that has eventsourcing")
    options = parser.parse_args()
    rows = rows_of(measure(options))
    figures = ("events/s", "of bare msgspec", "of eventsourcing")
    print(
        f"Python {platform.python_version()}, {options.rounds} rounds, {options.events:,} events\n"
    )
    print(f"| way | makes | {' | '.join(figures)} |\n|{'---|' * 5}")
    for row in rows:
        cells = [shown(row.get(name)) for name in figures]
        print(f"| {row['way']} | {row['makes']} | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
