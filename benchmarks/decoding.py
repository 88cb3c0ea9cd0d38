"""Measure what it takes to turn stored events into typed values, beside bare msgspec and others.

    python -m benchmarks.decoding [--rounds 5] [--events 1000000] [--json FILE] [--short]
        [--peer PYTHON]

Every event is 300 bytes of JSON: two texts, two numbers, a list, a remark; there are 1,000 of them,
which come again and again. Ours and `eventsourcing` are a process each, `python -O`, one at work at
a time; a round measures every way, in an order that is turned about each time. What counts is the
processor time of the process, whatever else the machine does. A ratio is of one round, a row shows
the median, and the least and most. PYTHON is an interpreter that has `eventsourcing`; without one,
an environment is made for it and thrown away.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from benchmarks._peer import PEER as THEIRS
from benchmarks._peer import peer_python
from benchmarks._report import OURS, Report, parse, parser_of
from tests.nodes import REPOSITORY

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

SHORT = {"rounds": 3, "events": 200_000}

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


def measure(options: argparse.Namespace, peer: str | None, report: Report) -> None:
    """Run every round; notes how many events a second of processor time each way decodes."""
    parties = {OURS: Party(sys.executable, OURS)}
    if peer:
        parties[THEIRS] = Party(peer, THEIRS)
    ways = [way for way, (party, _) in WAYS.items() if party in parties]
    try:
        for number in range(-1, options.rounds):
            turn = number % len(ways)
            with report.attempt("a round"):
                rates = {}
                for way in ways[turn:] + ways[:turn]:
                    events = options.events // FEWER.get(way, 1)
                    if number < 0:  # the first round warms up
                        events = max(events // 20, 1)
                    rates[way] = 1 / parties[WAYS[way][0]].decode(way, events)
                if number >= 0:
                    _note(report, rates)
            if report.failed:
                break
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    finally:
        for party in parties.values():
            party.close()


def _note(report: Report, rates: dict[str, float]) -> None:
    for way, (party, makes) in WAYS.items():
        if party == OURS and way != BARE:
            measure = f"{way}: {makes}, events/s"
            report.note(measure, OURS, rates[way])
            report.note(measure, BARE, rates[BARE])
            if COMPARED.get(way) in rates:
                report.note(measure, COMPARED[way], rates[COMPARED[way]])


def main() -> int:
    """Measure, and report."""
    parser = parser_of("decoding", __doc__, rounds=5)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--peer", help="a Python that has eventsourcing; one is made without it")
    options = parse(parser, SHORT)
    report = Report("decoding", options, {})
    with peer_python(options.peer, report) as peer:
        measure(options, peer, report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
