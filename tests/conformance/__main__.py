"""Run both suites against stock redis:// and ours, side by side, and print one table.

    python -m tests.conformance [--only WORD] [--markdown FILE] [--keep-going-s SECONDS]

Each file runs once per side, on a server of the side's own that is emptied before; both sides run
at the same time. Tests that failed run once more, on both sides. Exit 1 if a test that passes on
stock then fails on ours, and is not one of the named tests of stock's own insides.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path

import redis

from tests.conformance.insides import INSIDES
from tests.conformance.suites import Suite, celery_suite, environment, kombu_suite
from tests.nodes import REPOSITORY, RedisNode

SIDES = ("stock", "ours")

#: A test that takes longer has failed; as long as the mark that Celery gives to most of its own.
TEST_TIMEOUT_S = 300

#: Outcomes of a file's tests.
Outcomes = dict[str, str]


class Side:
    """Run files of a suite against one transport, on one server."""

    def __init__(self, name: str, python: Path, directory: Path, file_timeout_s: float) -> None:
        self.name = name
        self.python = python
        self.directory = directory
        self.file_timeout_s = file_timeout_s
        self.node = RedisNode(directory, name=f"redis-{name}", appendonly=False)
        self.node.start()

    def run(self, suite: Suite, tests: Sequence[str], log_name: str) -> Outcomes:
        """Run a file, or single tests, and return their outcomes; what was cut off has failed."""
        with self.node.client() as client:
            client.flushall()
        log = self.directory / f"{log_name}.jsonl"
        log.unlink(missing_ok=True)
        port = str(self.node.port)
        variables = {
            **os.environ,
            "CONFORMANCE_SIDE": self.name,
            "CONFORMANCE_LOG": str(log),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": port,
            "REDIS_6379_TCP": port,
            "TEST_BROKER": f"redis://127.0.0.1:{port}",
            "TEST_BACKEND": f"redis://127.0.0.1:{port}",
            "C_FORCE_ROOT": "1",
            "PATH": os.pathsep.join([str(self.python.parent), os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join([str(suite.folder), str(REPOSITORY)]),
        }
        command = [str(self.python), "-m", "pytest", "-q", "-c", "pytest.ini", "--rootdir", "."]
        command += ["-p", "tests.conformance.plugin", "-p", "no:cacheprovider"]
        command += ["--timeout", str(TEST_TIMEOUT_S), "-W", "ignore", *tests]
        with (self.directory / f"{log_name}.log").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=suite.folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(self.file_timeout_s)
            except subprocess.TimeoutExpired:
                say(f"  {self.name}: {log_name} cut off")
            finally:
                _kill_group(process)
        return _read(log)


def say(text: str) -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 - a command's output


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read(log: Path) -> Outcomes:
    outcomes: Outcomes = {}
    if log.exists():
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            outcomes[entry["test"]] = entry["outcome"]
    return {
        test: outcome if outcome in {"passed", "skipped"} else "failed"
        for test, outcome in outcomes.items()
    }


def reason_of(test: str) -> str | None:
    """Return why a test concerns stock's insides; None if it concerns what a user sees."""
    return next((why for pattern, why in INSIDES.items() if fnmatch(test, pattern)), None)


def run_file(sides: Sequence[Side], suite: Suite, file: str) -> dict[str, Outcomes]:
    """Run a file on all sides at once, and once more what failed on one of them."""
    name = f"{suite.project}-{Path(file).stem}"
    with ThreadPoolExecutor(len(sides)) as threads:
        found = list(threads.map(lambda side: side.run(suite, [file], name), sides))
        names = {test for outcomes in found for test in outcomes}

        def again(side: Side, outcomes: Outcomes) -> Outcomes:
            other = found[1 - sides.index(side)]
            failed = [t for t in sorted(names) if _needs_rerun(t, outcomes, other)]
            if failed:
                outcomes = {**outcomes, **side.run(suite, failed, f"{name}-again")}
            return outcomes

        found = list(threads.map(again, sides, found))
    return {side.name: outcomes for side, outcomes in zip(sides, found, strict=True)}


def _needs_rerun(test: str, mine: Outcomes, other: Outcomes) -> bool:
    """Say whether a test failed here only: what fails on both sides is no difference."""
    is_here_only = mine.get(test, "failed") == "failed" and other.get(test) == "passed"
    return is_here_only and reason_of(test) is None


def regressions_of(results: dict[str, Outcomes]) -> list[str]:
    """Return the tests that stock passes and ours fails, insides too."""
    return [
        test
        for test, outcome in results["stock"].items()
        if outcome == "passed" and results["ours"].get(test, "failed") != "passed"
    ]


def table_of(rows: list[tuple[str, dict[str, Outcomes]]]) -> list[str]:
    """Return the report's lines: a Markdown table, then the tests that only stock passes."""
    lines = [
        "| file | stock passed | failed | skipped | ours passed | failed | skipped | insides |",
        "|---|---|---|---|---|---|---|---|",
    ]
    total: Counter[tuple[str, str]] = Counter()
    for name, results in rows:
        inside = [t for t in regressions_of(results) if reason_of(t)]
        cells = [name]
        for side in SIDES:
            counted = Counter(
                "inside" if side == "ours" and test in inside else outcome
                for test, outcome in results[side].items()
            )
            for outcome in ("passed", "failed", "skipped"):
                total[side, outcome] += counted[outcome]
                cells.append(str(counted[outcome]))
        total["ours", "inside"] += len(inside)
        lines.append("| " + " | ".join([*cells, str(len(inside))]) + " |")
    sums = [str(total[s, o]) for s in SIDES for o in ("passed", "failed", "skipped")]
    lines.append("| total | " + " | ".join([*sums, str(total["ours", "inside"])]) + " |")
    return lines


def details_of(rows: list[tuple[str, dict[str, Outcomes]]]) -> tuple[list[str], list[str]]:
    """Return the tests that only stock passes: what counts, and those of stock's insides."""
    failing: list[str] = []
    inside: Counter[tuple[str, str]] = Counter()
    for _, results in rows:
        for test in regressions_of(results):
            why = reason_of(test)
            if why:
                inside[short(test).partition("[")[0], why] += 1
            else:
                failing.append(f"- `{short(test)}`")
    return failing, [f"| `{test}` | {count} | {why} |" for (test, why), count in inside.items()]


def short(test: str) -> str:
    """Return a test's id without the folder that all share."""
    return test.removeprefix("t/integration/")


def only_ours_of(rows: list[tuple[str, dict[str, Outcomes]]]) -> list[str]:
    """Return the tests that ours passes and stock fails."""
    return [
        f"- `{short(test)}`"
        for _, results in rows
        for test, outcome in results["ours"].items()
        if outcome == "passed" and results["stock"].get(test, "failed") == "failed"
    ]


def both_fail_of(rows: list[tuple[str, dict[str, Outcomes]]]) -> list[str]:
    """Return the tests that fail on both sides."""
    return [
        f"- `{short(test)}`"
        for _, results in rows
        for test, outcome in results["stock"].items()
        if outcome == "failed" and results["ours"].get(test, "failed") == "failed"
    ]


def report_of(
    rows: list[tuple[str, dict[str, Outcomes]]], versions: dict[str, str], took_s: float
) -> str:
    """Return the whole report in Markdown."""
    failing, inside = details_of(rows)
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in versions.items())]
    lines += [f"| took | {took_s / 60:.0f} minutes |", "", *table_of(rows), ""]
    none = "None but the tests of stock's insides, below." if inside else "None."
    lines += ["## Passed on stock, failed on ours", "", *(failing or [none]), ""]
    lines += ["## Passed on ours, failed on stock", "", *(only_ours_of(rows) or ["None."]), ""]
    lines += ["## Failed on both", "", *(both_fail_of(rows) or ["None."]), ""]
    lines += ["## Tests of stock's insides", ""]
    lines += ["| test | runs | why |", "|---|---|---|", *inside] if inside else ["None."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run everything, print the table; 1 if ours fails where stock passes."""
    parser = argparse.ArgumentParser(description="Run Kombu's and Celery's suites on both sides.")
    parser.add_argument("--only", default="", help="files whose project/name contains this")
    parser.add_argument("--markdown", type=Path, help="write the report to this file too")
    parser.add_argument("--file-timeout-s", type=float, default=2400, help="longest run of a file")
    parser.add_argument("--logs", type=Path, help="keep what pytest said in this folder")
    options = parser.parse_args()
    python = environment()
    suites = [kombu_suite(), celery_suite()]
    started = time.monotonic()
    rows: list[tuple[str, dict[str, Outcomes]]] = []
    with tempfile.TemporaryDirectory() as scratch:
        base = options.logs or Path(scratch)
        sides = []
        for name in SIDES:
            (base / name).mkdir(parents=True, exist_ok=True)
            sides.append(Side(name, python, (base / name).resolve(), options.file_timeout_s))
        with sides[0].node.client() as client:
            info: dict[str, str] = client.info("server")
        try:
            for suite in suites:
                for file in suite.files:
                    row = f"{suite.project} {Path(file).name}"
                    if options.only in row:
                        rows.append((row, run_file(sides, suite, file)))
                        say(table_of(rows[-1:])[2])
        finally:
            for side in sides:
                side.node.teardown()
    server = info.get("server_name", "redis")
    versions = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        **{suite.project: suite.version for suite in suites},
        "redis-py": redis.__version__,
        "server": f"{server} {info.get('valkey_version', info['redis_version'])}",
        "Python": platform.python_version(),
    }
    report = report_of(rows, versions, time.monotonic() - started)
    say("\n" + report)
    if options.markdown:
        options.markdown.write_text(report)
    return 1 if details_of(rows)[0] else 0


if __name__ == "__main__":
    sys.exit(main())
