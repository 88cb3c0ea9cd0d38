"""What every benchmark reports: rows of one shape, as a table and as JSON.

A row has a measure, our value and others', the ratio of ours to each other one, and its bars:

    {"measure": "drain, solo, tasks/s", "group": "", "rounds": 3,
     "ours": {"median": …, "least": …, "most": …},
     "others": {"stock": {"median": …, "least": …, "most": …}},
     "ratios": {"stock": {"median": …, "least": …, "most": …}},
     "bars": [{"to": "stock", "sign": ">=", "value": 5.0, "met": true}]}

A ratio is of one round. A bar without `to` is one for our own value. What failed, and what was not
measured, is named: `failed` and `left_out` are lists of {"what": …, "why": …}.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

#: Places of this machine, which are left out of what is recorded.
_PATH = re.compile(r"(?<![\w:/])(?:/[\w.+-]+){2,}")

Row = dict[str, Any]
Samples = dict[str, dict[str, list[float]]]

OURS = "ours"

#: Digits of a recorded number that count. What is judged and shown is the recorded number.
SIGNIFICANT = 5

#: The libraries whose versions a record has: a title, and the distribution's name.
LIBRARIES = {
    "Celery": "celery", "Kombu": "kombu", "redis-py": "redis", "SQLAlchemy": "sqlalchemy",
    "psycopg2": "psycopg2-binary", "msgspec": "msgspec", "gevent": "gevent",
}  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """What a row's ratio to another party must be; without a party, what our value must be."""

    sign: str
    value: float
    to: str | None = None

    def is_met(self, row: Row) -> bool | None:
        """Tell whether a row meets it; None if the row has no such value."""
        found = row["ratios"].get(self.to) if self.to else row["ours"]
        if found is None:
            return None
        median = found["median"]
        if self.sign == ">=":
            return bool(median >= self.value)
        return bool(median < self.value if self.sign == "<" else median <= self.value)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    numbers = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: float(f"{number:.{SIGNIFICANT}g}") for name, number in numbers.items()}


def without_paths(text: str) -> str:
    """Return a text without the places of this machine, for what is recorded."""
    return _PATH.sub("…", text)


def number_text(value: float) -> str:
    """Return a number with as many digits as are of use."""
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 or not size else 3
    digits += 0 < size < 0.01
    return f"{value:,.{digits}f}"


def spread_text(value: Mapping[str, float] | None) -> str:
    """Return a median with the least and the most behind it; "" for None."""
    if value is None:
        return ""
    median, least, most = (number_text(value[name]) for name in ("median", "least", "most"))
    return median if least == most == median else f"{median} ({least}-{most})"


def bar_text(bar: Mapping[str, Any]) -> str:
    """Return a bar of a row as text."""
    value = f"{bar['value']:,.0f}" if bar["value"] >= 100 else f"{bar['value']:.2g}"
    return f"{bar['sign']} {value}" + (f" x {bar['to']}" if bar["to"] else "")


def table_of(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table; columns in which there is nothing are left out."""
    others = list(dict.fromkeys(name for row in rows for name in row["others"]))
    compared = [name for name in others if any(name in row["ratios"] for row in rows)]
    has_bars = any(row["bars"] for row in rows)
    heads = ["measure", OURS, *others, *(f"ours to {name}" for name in compared)]
    lines = []
    for row in rows:
        cells = [row["measure"], spread_text(row["ours"])]
        cells += [spread_text(row["others"].get(name)) for name in others]
        cells += [spread_text(row["ratios"].get(name)) for name in compared]
        if has_bars:
            cells.append(", ".join(bar_text(bar) for bar in row["bars"]))
            cells.append(", ".join("yes" if bar["met"] else "no" for bar in row["bars"]))
        lines.append(cells)
    return markdown([*heads, *(["bar", "met"] if has_bars else [])], lines)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    rule = "|" + "---|" * len(heads)
    return "\n".join([f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(x)} |" for x in lines)])


def library_versions() -> dict[str, str]:
    """Return the versions of this interpreter, of its libraries, and what the machine is."""
    found = {}
    for title, name in LIBRARIES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[title] = metadata.version(name)
    machine = f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores"
    return found | {"Python": platform.python_version(), "machine": machine}


def server_version(client: Any) -> str:
    """Return what a Redis or Valkey server calls itself."""
    # Not above: what renders pages has no need of Celery and of the chaos tests' applications.
    from tests.chaos.__main__ import server_version as of_chaos

    return of_chaos(client)


def postgres_version(postgres: Any) -> str:
    """Return what a server of `tests.postgres` calls itself, without its packager's additions."""
    with contextlib.closing(postgres.connect()) as connection, connection.cursor() as cursor:
        cursor.execute("SHOW server_version")
        return str(cursor.fetchone()[0]).split()[0]


def parser_of(name: str, doc: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """Return a parser that has the options of every benchmark."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and samples there")
    parser.add_argument("--short", action="store_true", help="the same rows, by fewer repetitions")
    return parser


def parse(parser: argparse.ArgumentParser, short: Mapping[str, Any]) -> argparse.Namespace:
    """Return the options; in the short form, those that are not given are `short`'s."""
    if parser.parse_known_args()[0].short:
        parser.set_defaults(**short)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    return options


class Report:
    """The samples of one run of a benchmark, and what became of its rows."""

    def __init__(
        self, benchmark: str, options: argparse.Namespace, bars: Mapping[str, Sequence[Bar]]
    ) -> None:
        """Begin without samples.

        Args:
            benchmark: the module's name.
            options: its options; `short` and `json` are looked at, the rest is recorded.
            bars: those of each measure that has some.
        """
        self.benchmark = benchmark
        self.samples: Samples = {}
        self.groups: dict[str, str] = {}
        self.facts: dict[str, Any] = {}
        self.failed: list[dict[str, str]] = []
        self.left_out: list[dict[str, str]] = []
        self.versions = library_versions()
        self._options = options
        self._bars = bars
        self._noted: list[tuple[str, str, float]] | None = None
        self._of_attempt: dict[str, set[str]] = {}

    def note(self, measure: str, party: str, value: float, *, group: str = "") -> None:
        """Keep a sample: one of each party in each round."""
        self.groups.setdefault(measure, group)
        if self._noted is not None:
            self._noted.append((measure, party, value))
        else:
            self._keep(measure, party, value)

    def _keep(self, measure: str, party: str, value: float) -> None:
        self.samples.setdefault(measure, {}).setdefault(party, []).append(value)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Keep what is noted in the block if nothing in it fails.

        A failure is reported under its name, and what earlier rounds of that name have noted is
        dropped. The benchmark goes on with the others; the exit code tells.
        """
        self._noted = []
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are measured
            traceback.print_exc()
            self.fail(what, error)
        else:
            of_attempt = self._of_attempt.setdefault(what, set())
            for measure, party, value in self._noted:
                of_attempt.add(measure)
                self._keep(measure, party, value)
        finally:
            self._noted = None

    def run(self, what: str, action: Callable[..., object], *arguments: object) -> None:
        """Call an action as an attempt, unless an earlier round of that name has failed."""
        if not self.has_failed(what):
            with self.attempt(what):
                action(*arguments)

    def has_failed(self, what: str) -> bool:
        """Tell whether a round of that name has failed; there is no use in another."""
        return any(one["what"] == what for one in self.failed)

    def fail(self, what: str, error: BaseException) -> None:
        """Report a failure, and drop the samples of its name."""
        text = (str(error).splitlines() or [""])[0]
        text = without_paths(text)
        why = f"{type(error).__name__}: {text}" if text else type(error).__name__
        self.failed.append({"what": what, "why": why})
        for measure in self._of_attempt.pop(what, ()):
            self.samples.pop(measure, None)

    def leave_out(self, what: str, why: str) -> None:
        """Name what can't be measured here."""
        self.left_out.append({"what": what, "why": why})

    def rows(self) -> list[Row]:
        """Return one row a measure of which ours has samples."""
        return [self._row(name, found) for name, found in self.samples.items() if OURS in found]

    def _row(self, measure: str, found: dict[str, list[float]]) -> Row:
        ours = found[OURS]
        row: Row = {
            "measure": measure, "group": self.groups[measure], "rounds": len(ours),
            "ours": spread(ours), "others": {}, "ratios": {}, "bars": [],
        }  # fmt: skip
        for party, values in found.items():
            if party == OURS:
                continue
            row["others"][party] = spread(values)
            if all(values):
                ratios = [one / other for one, other in zip(ours, values, strict=True)]
                row["ratios"][party] = spread(ratios)
        for bar in self._bars.get(measure, ()):
            is_met = bar.is_met(row)
            if is_met is not None:
                row["bars"].append(
                    {"to": bar.to, "sign": bar.sign, "value": bar.value, "met": is_met}
                )
        return row

    def finish(self) -> int:
        """Print the table, write the JSON file, and return the exit code: 1 if a row failed."""
        rows = self.rows()
        given = {
            name.replace("_", " "): value
            for name, value in vars(self._options).items()
            if name not in {"json", "short", "peer", "only"} and isinstance(value, int | float)
            and not isinstance(value, bool)
        }  # fmt: skip
        facts = given | self.facts
        print(", ".join(f"{name} {value}" for name, value in (self.versions | facts).items()))
        for group in dict.fromkeys(row["group"] for row in rows):
            print(f"\n{group}\n" if group else "")
            print(table_of([row for row in rows if row["group"] == group]))
        for one in self.left_out:
            print(f"\nnot measured: {one['what']}: {one['why']}", file=sys.stderr)
        for one in self.failed:
            print(f"\nfailed: {one['what']}: {one['why']}", file=sys.stderr)
        if self._options.json:
            report = {
                "benchmark": self.benchmark, "short": self._options.short, "facts": facts,
                "versions": self.versions, "rows": rows, "failed": self.failed,
                "left_out": self.left_out, "samples": self.samples,
            }  # fmt: skip
            text = json.dumps(report, indent=2, ensure_ascii=False)
            self._options.json.write_text(text + "\n", encoding="utf-8")
        return 1 if self.failed else 0
