"""Run every benchmark's short form, and record what was measured in docs/benchmarks.json.

    python -m benchmarks.summary                  measure, record, and write the pages' numbers
    python -m benchmarks.summary --only locks     measure that alone, print it, record nothing
    python -m benchmarks.summary --render         write the pages' numbers from the record
    python -m benchmarks.summary --check          tell what of the record or the pages is stale

README.md and the pages of docs/ have every number from that record. It names its commit: the hot
paths must have no uncommitted changes, or nothing is measured; `--allow-dirty` measures anyway, and
the record says so. Each benchmark is a process of its own, one after the other. What fails is
named, the rest is recorded, and the exit code is 1; it is 0 also where a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._peer import peer_python
from benchmarks._rendering import (
    HIGHLIGHTS,
    RECORD,
    REPOSITORY,
    Record,
    bars_of,
    missed,
    read_record,
    render_pages,
    row_of,
    stale_pages,
)
from benchmarks._report import bar_text, markdown, spread_text, without_paths

#: The benchmarks, the longest last; those of the second set are measured beside `eventsourcing`.
BENCHMARKS = (
    "decoding", "locks", "redis_away", "blocked_sequences", "ready_queue", "batches", "snapshots",
    "recovery", "growth", "event_store", "transport",
)  # fmt: skip
WITH_PEER = {"decoding", "snapshots", "event_store"}

#: A commit that changes one of these may change what was measured.
HOT_PATHS = tuple(
    f"cqrs_celery/{package}"
    for package in (
        "queue",
        "transport",
        "workers",
        "dispatch",
        "session",
        "backends",
        "messages",
        "store",
        "domain",
    )
)

#: Seconds after which a benchmark is ended, and those that it gets to end its servers.
LIMIT_S = 1_800
END_S = 60


class NoGit(Exception):
    """This is not a Git checkout."""


def git(*arguments: str) -> str:
    """Return what Git answers.

    Raises:
        NoGit: this is not a checkout, or Git refuses.
    """
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoGit(getattr(error, "stderr", "") or str(error)) from error
    return done.stdout.strip()


def is_checkout() -> bool:
    """Tell whether this is the top of a Git checkout, not an sdist, be it inside another one."""
    try:
        top = git("rev-parse", "--show-toplevel")
    except NoGit:
        return False
    return Path(top).resolve() == REPOSITORY.resolve()


def commits_since(commit: str) -> list[str]:
    """Return the commits on hot paths that are newer than one, newest first.

    Raises:
        NoGit: this is not a checkout, or has no such commit.
    """
    return git("log", "--oneline", f"{commit}..HEAD", "--", *HOT_PATHS).splitlines()


def code_measured() -> tuple[str, bool]:
    """Return the commit, "" outside of a checkout, and whether it isn't all that is measured."""
    if not is_checkout():
        return "", True
    return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", *HOT_PATHS))


def changed_since(commit: str, is_dirty: bool) -> str:
    """Return how the hot paths have changed since a measurement began; "" if they have not."""
    newer = commits_since(commit)
    if newer:
        return f"commits on hot paths came while it was measured: {'; '.join(newer)}"
    if code_measured()[1] and not is_dirty:
        return "hot paths were edited while they were measured"
    return ""


# ---------------------------------------------------------------- measure


def measure(name: str, folder: Path, peer: str | None) -> dict[str, Any]:
    """Run one benchmark's short form; return its report, or one that only says what failed."""
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, "-m", f"benchmarks.{name}", "--short", "--json", str(result)]
    if name in WITH_PEER:
        # Without one, this interpreter is asked, and has none: nothing is installed again.
        command += ["--peer", peer or sys.executable]
    started = time.monotonic()
    why = ""
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=output, stderr=output)
        try:
            code = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code, why = 1, f"ended after {LIMIT_S} s"
        finally:
            _end(process)
    report: dict[str, Any] = {"facts": {}, "versions": {}, "rows": [], "failed": [], "left_out": []}
    with contextlib.suppress(OSError, ValueError):
        report = json.loads(result.read_text(encoding="utf-8"))
    if code and not report["failed"]:
        lines = log.read_text(errors="replace").rstrip().splitlines()
        print("\n".join(lines[-30:]), file=sys.stderr)
        why = why or f"exit code {code}: {without_paths(lines[-1] if lines else 'no output')}"
        report["failed"] = [{"what": "all of it", "why": why}]
    return report | {"took_s": round(time.monotonic() - started)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a benchmark so that it ends its servers and workers."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def measure_all(names: list[str], peer: str | None, commit: str, is_dirty: bool) -> Record:
    """Run benchmarks; return the record."""
    started = time.monotonic()
    record: Record = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(), "commit": commit,
        "is_dirty": is_dirty, "load": round(os.getloadavg()[0], 2), "took_s": 0, "versions": {},
        "benchmarks": {}, "failed": [], "left_out": [],
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, peer_python(peer) as python:
        for name in names:
            print(f"{name} …", end=" ", file=sys.stderr, flush=True)
            report = measure(name, Path(folder), python)
            took_s, rows = report["took_s"], report["rows"]
            print(f"{took_s} s, {len(rows)} rows", file=sys.stderr)
            record["versions"] |= report["versions"]
            record["benchmarks"][name] = {
                "facts": report["facts"], "took_s": took_s, "rows": rows,
            }  # fmt: skip
            for kind in ("failed", "left_out"):
                record[kind] += [{"benchmark": name, **one} for one in report[kind]]
    record["took_s"] = round(time.monotonic() - started)
    return record


def table_of(record: Record) -> str:
    """Return every ratio and every bar as one table."""
    lines = []
    for name, one in record["benchmarks"].items():
        for row in one["rows"]:
            bars = {bar["to"]: bar for bar in row["bars"]}
            values = ({None: row["ours"]} if None in bars else {}) | row["ratios"]
            for party, value in values.items():
                bar = bars.get(party)
                met = "" if bar is None else "yes" if bar["met"] else "no"
                shown = bar_text(bar) if bar else ""
                lines.append(
                    [name, row["measure"], party or "", spread_text(value), shown, met]
                )  # fmt: skip
    heads = ["benchmark", "measure", "ours to", "ratio, or value", "bar", "met"]
    return markdown(heads, lines)


def print_record(record: Record) -> None:
    """Print the table, what is missed, what failed and what was not measured."""
    print(table_of(record))
    met = [bar["met"] for _, _, bar in bars_of(record)]
    print(f"\n{sum(met)} of {len(met)} bars met; {record['took_s']} s\n")
    print(missed(record))
    for title, kind in (("not measured", "left_out"), ("failed", "failed")):
        for one in record[kind]:
            print(f"{title}: {one['benchmark']}: {one['what']}: {one['why']}", file=sys.stderr)


def write_record(record: Record, path: Path) -> None:
    """Write the record: a row a line, so that two of them can be compared."""
    rows = [row for one in record["benchmarks"].values() for row in one["rows"]]
    marks = {id(row): f"row {number}" for number, row in enumerate(rows)}
    outline = record | {
        "benchmarks": {
            name: one | {"rows": [marks[id(row)] for row in one["rows"]]}
            for name, one in record["benchmarks"].items()
        }
    }
    text = json.dumps(outline, indent=1, ensure_ascii=False)
    for row in rows:
        text = text.replace(f'"{marks[id(row)]}"', json.dumps(row, ensure_ascii=False), 1)
    path.write_text(text + "\n", encoding="utf-8")


# ---------------------------------------------------------------- check


def problems(path: Path = RECORD) -> list[str]:
    """Return what is stale: pages, or the record, because hot paths have changed since."""
    try:
        record = read_record(path)
    except (OSError, ValueError) as error:
        return [f"there is no record that can be read: {error}; run: make bench"]
    found = [
        f"{page.relative_to(REPOSITORY)} has other numbers than the record; run:"
        " python -m benchmarks.summary --render"
        for page in stale_pages(record)
    ]
    found += [
        f"failed when it was recorded: {x['benchmark']}: {x['what']}" for x in record["failed"]
    ]
    found += [
        f"README.md shows a row that the record lacks: {benchmark}: {measure}"
        for _, benchmark, measure, _ in HIGHLIGHTS
        if row_of(record, benchmark, measure) is None
    ]
    if record["is_dirty"]:
        found.append("it was measured with uncommitted changes; run: make bench")
    if not is_checkout():
        print("not a Git checkout: whether the record is of this code can't be told")
        return found
    try:
        newer = commits_since(record["commit"])
    except NoGit:
        if git("rev-parse", "--is-shallow-repository") == "true":
            print("a shallow clone: whether the record is of this code can't be told")
        else:
            found.append(f"its commit {record['commit']} is not in this history; run: make bench")
        return found
    if newer:
        found.append(
            f"{len(newer)} commits on hot paths are newer than the record's "
            f"{record['commit'][:10]}; run: make bench\n  " + "\n  ".join(newer)
        )
    return found


def check() -> int:
    """Print what is stale; return the exit code."""
    found = problems()
    for problem in found:
        print(f"benchmarks: {problem}", file=sys.stderr)
    return 1 if found else 0


def main() -> int:
    """Measure and record; or render, or check."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.summary",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", choices=BENCHMARKS, action="append", help="may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE", help="record there, touch no page")
    parser.add_argument("--peer", help="a Python that has eventsourcing; one is made without it")
    parser.add_argument("--allow-dirty", action="store_true", help="measure uncommitted changes")
    parser.add_argument("--render", action="store_true", help="measure nothing, write the pages")
    parser.add_argument("--check", action="store_true", help="measure nothing, tell what is stale")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.render:
        for page in render_pages(read_record()):
            print(f"written: {page.relative_to(REPOSITORY)}")
        return 0
    commit, is_dirty = code_measured()
    is_recorded = not options.only or options.out
    if is_recorded and is_dirty and not options.allow_dirty:
        what = "uncommitted changes on hot paths" if commit else "not a Git checkout"
        parser.error(f"{what}, so a record can't name what was measured; commit, or --allow-dirty")
    record = measure_all(options.only or list(BENCHMARKS), options.peer, commit, is_dirty)
    if commit and (changed := changed_since(commit, is_dirty)):
        failure = {"benchmark": "summary", "what": "code measured", "why": changed}
        record["failed"].append(failure)
    print_record(record)
    if options.out:
        write_record(record, options.out)
    elif not options.only:
        write_record(record, RECORD)
        render_pages(record)
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
