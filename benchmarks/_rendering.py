"""Write the numbers of docs/benchmarks.json into README.md and the pages of docs/.

A page has regions, whose text is made from the record:

    <!-- benchmarks: transport -->      a block: every row of a benchmark, or one of `BLOCKS`
    …
    <!-- /benchmarks -->

    <!-- n: batches; up to 500 events a task, events/s; one by one --> … <!-- /n -->

The second is a single number in a sentence: a benchmark, a measure, and a party to which ours is
compared, or `ours`; `; median`, `; least` or `; most` behind it leaves the others out. It must not
begin a line, where Markdown would take it for a block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks._report import OURS, Row, bar_text, markdown, number_text, spread_text, table_of

REPOSITORY = Path(__file__).resolve().parent.parent
RECORD = REPOSITORY / "docs" / "benchmarks.json"

Record = dict[str, Any]

#: What stands where the record has no such row.
NOT_MEASURED = "not measured"

_BLOCK = re.compile(r"(?ms)(^<!-- benchmarks: ([^\n]+?) -->\n).*?(^<!-- /benchmarks -->$)")
_NUMBER = re.compile(r"(<!-- n: ([^\n]+?) -->)[^\n]*?(<!-- /n -->)")

#: The versions that come first, in this order.
ORDER = ("machine", "Python", "server", "PostgreSQL", "RabbitMQ")

#: README's rows: what it calls them, the benchmark, the measure, and whom ours is compared with.
#: Chosen for what users ask first, rows that miss their bar among them; all are in benchmarks.md.
HIGHLIGHTS = (
    ("drain a full queue, solo worker", "transport", "drain, solo, tasks/s", "stock"),
    ("the same, eight threads", "transport", "drain, threads -c 8, tasks/s", "stock"),
    ("latency of one task, solo, p50", "transport", "latency, solo, p50, ms", "stock"),
    ("commands sent to Redis per task", "transport", "commands per task, solo", "stock"),
    (
        "an event to three subscriptions, next to three `.delay()`",
        "event_store", "redis: append, 3 subscriptions", "stock",
    ),
    (
        "commits in PostgreSQL, one writer",
        "event_store", "postgresql: save, 1 event, 1 writer", "eventsourcing",
    ),
    (
        "commits in PostgreSQL, 16 writers",
        "event_store", "postgresql: save, 1 event, 16 writers", "eventsourcing",
    ),
    ("read every event in PostgreSQL", "event_store", "postgresql: read all", "eventsourcing"),
    (
        "commits in SQLite, one writer",
        "event_store", "sqlite: save, 1 event, 1 writer", "eventsourcing",
    ),
)  # fmt: skip


def read_record(path: Path = RECORD) -> Record:
    """Return the record."""
    found: Record = json.loads(path.read_text(encoding="utf-8"))
    return found


def pages() -> list[Path]:
    """Return the pages that may have regions: README.md and all below docs/."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def rows_of(record: Record, benchmark: str) -> list[Row]:
    """Return a benchmark's rows; [] if it was not measured."""
    rows: list[Row] = record["benchmarks"].get(benchmark, {}).get("rows", [])
    return rows


def row_of(record: Record, benchmark: str, measure: str) -> Row | None:
    """Return one row; None if it was not measured."""
    return next((row for row in rows_of(record, benchmark) if row["measure"] == measure), None)


def bars_of(record: Record) -> Iterator[tuple[str, Row, dict[str, Any]]]:
    """Yield every bar with its benchmark and row."""
    for name in record["benchmarks"]:
        for row in rows_of(record, name):
            for bar in row["bars"]:
                yield name, row, bar


# ---------------------------------------------------------------- blocks


def record_table(record: Record) -> str:
    """Return what was measured: when, which commit, on what."""
    minutes = record["took_s"] / 60
    dirty = ", with uncommitted changes" if record["is_dirty"] else ""
    facts = {"date": record["date"], "commit": f"`{record['commit']}`{dirty}"}
    facts |= {name: record["versions"][name] for name in ORDER if name in record["versions"]}
    facts |= record["versions"]
    facts["load of the machine at the start"] = number_text(record["load"])
    facts["form"] = f"short, {minutes:.0f} minutes"
    return markdown(["", ""], [[name, str(value)] for name, value in facts.items()])


def highlights(record: Record) -> str:
    """Return README's table."""
    lines = []
    for title, benchmark, measure, other in HIGHLIGHTS:
        row = row_of(record, benchmark, measure)
        found = row["ratios"].get(other) if row else None
        bars = [bar for bar in row["bars"] if bar["to"] == other] if row else []
        lines.append([
            title, other if other != "stock" else "stock `redis://`",
            spread_text(found) if found else NOT_MEASURED,
            ", ".join(f"{bar['sign']} {bar['value']:.2g}" for bar in bars),
            ", ".join("yes" if bar["met"] else "no" for bar in bars),
        ])  # fmt: skip
    met = [bar["met"] for _, _, bar in bars_of(record)]
    dirty = " with uncommitted changes" if record["is_dirty"] else ""
    on = ", ".join(
        f"{name} {record['versions'][name]}"
        for name in ("PostgreSQL", "Celery", "Python")
        if name in record["versions"]
    )
    server, machine = (record["versions"].get(name, "") for name in ("server", "machine"))
    caption = (
        f"{record['date']}, commit `{record['commit'][:10]}`{dirty}; {server}, {on}; {machine}. "
        f"{sum(met)} of {len(met)} bars are met."
    )
    table = markdown(["ours", "compared with", "ratio (least-most)", "bar", "met"], lines)
    return f"{table}\n\n{caption}"


def missed(record: Record) -> str:
    """Return the list of the rows whose bar is not met."""
    lines = []
    for name, row, bar in bars_of(record):
        if not bar["met"]:
            found = row["ratios"][bar["to"]] if bar["to"] else row[OURS]
            text = spread_text(found) + (f" x {bar['to']}" if bar["to"] else "")
            lines.append(f"- `{name}`: {row['measure']}: {text}, the bar is {bar_text(bar)}")
    return "\n".join(lines) or "Every bar that was measured is met."


def not_measured(record: Record) -> str:
    """Return the list of what failed, and of what could not be measured."""
    lines = [f"- `{one['benchmark']}`: {one['what']}: failed" for one in record["failed"]]
    lines += [f"- `{one['benchmark']}`: {one['what']}: {one['why']}" for one in record["left_out"]]
    return "\n".join(lines) or "Everything was measured."


def rows_table(record: Record, benchmark: str) -> str:
    """Return every row of a benchmark, one table a group, with the numbers that it was given."""
    rows = rows_of(record, benchmark)
    if not rows:
        return f"{NOT_MEASURED.capitalize()}."
    facts = record["benchmarks"][benchmark]["facts"]
    said = ", ".join(f"{name} {value:,}" for name, value in facts.items())
    parts = [f"Short form: {said}."]
    for group in dict.fromkeys(row["group"] for row in rows):
        if group:
            parts.append(f"{group[0].upper()}{group[1:]}:")
        parts.append(table_of([row for row in rows if row["group"] == group]))
    return "\n\n".join(parts)


BLOCKS: dict[str, Callable[[Record], str]] = {
    "record": record_table, "highlights": highlights, "missed": missed,
    "not measured": not_measured,
}  # fmt: skip


def block_text(record: Record, name: str) -> str:
    """Return a block's text: one of `BLOCKS`, or a benchmark's rows."""
    return BLOCKS[name](record) if name in BLOCKS else rows_table(record, name)


def inline_text(record: Record, name: str) -> str:
    """Return a number in a sentence.

    Raises:
        ValueError: the marker is not one of three or four parts.
    """
    benchmark, measure, party, *rest = (part.strip() for part in f"{name};;".split(";"))
    kind = rest[0]
    if not party or kind not in {"", "median", "least", "most"}:
        raise ValueError(
            f"<!-- n: {name} -->: expected a benchmark, a measure, a party and perhaps"
            " median, least or most, with ; between them"
        )
    row = row_of(record, benchmark, measure)
    found = row and (row[OURS] if party == OURS else row["ratios"].get(party))
    if not found:
        return NOT_MEASURED
    return number_text(found[kind]) if kind else spread_text(found)


# ---------------------------------------------------------------- pages


def render(text: str, record: Record) -> str:
    """Return a page with its regions made anew from the record."""
    text = _BLOCK.sub(
        lambda match: f"{match[1]}\n{block_text(record, match[2])}\n\n{match[3]}", text
    )
    return _NUMBER.sub(lambda match: f"{match[1]}{inline_text(record, match[2])}{match[3]}", text)


def without_regions(text: str) -> str:
    """Return a page without the text that is made from the record; its lines keep their numbers."""
    text = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), text)
    return _NUMBER.sub("", text)


def stale_pages(record: Record) -> list[Path]:
    """Return the pages whose regions are not what the record says."""
    texts = {page: page.read_text(encoding="utf-8") for page in pages()}
    return [page for page, text in texts.items() if render(text, record) != text]


def render_pages(record: Record) -> list[Path]:
    """Write the record's numbers into the pages; return those that have changed."""
    changed = stale_pages(record)
    for page in changed:
        text = render(page.read_text(encoding="utf-8"), record)
        page.write_text(text, encoding="utf-8")
    return changed
