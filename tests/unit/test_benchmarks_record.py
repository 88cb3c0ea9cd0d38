"""Every measured number in README.md and docs/ is the record's, and the record is consistent."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _rendering as rendering
from benchmarks import summary
from benchmarks._report import OURS, Bar, Report, parse, parser_of
from tests.nodes import REPOSITORY

PAGES = rendering.pages()
IDS = [str(page.relative_to(REPOSITORY)) for page in PAGES]

#: Dated history, each with its commit and versions.
HISTORY = REPOSITORY / "docs" / "decisions"

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_WORD = r"\b(?:twice|half|(?:two|three|four|five|six|seven|eight|nine|ten|a hundred) times)"
_UNIT = (
    r"(?:\u00d7|[µum]s\b|%|x\b|times\b|bytes (?:an?|per) |kB\b|MB\b"
    r"|(?:messages|tasks|events|commits|commands|loads|aggregates|locks)"
    r"(?:/s| a second| per second))"
)
_RANGE = rf"{_NUMBER}\s?[-\u2013]\s?{_NUMBER}"
#: A number with a unit of speed, time, memory or comparison, or one with a range behind it.
MEASURED = re.compile(
    rf"(?<![\w.,-])(?:{_RANGE}|{_NUMBER})\s?{_UNIT}|{_NUMBER} \({_RANGE}\)|{_WORD} as \w+"
)

#: Numbers with a unit that nobody has measured: the page, a part of the line, and what it is.
ALLOWED = (
    ("docs/chaos.md", "within 8 ms after", "an experiment's setting"),
    ("docs/chaos.md", "is killed within 30 ms", "an experiment's setting"),
    ("docs/chaos.md", "within 80 ms. A fourth of the commits", "an experiment's setting"),
    ("docs/chaos.md", "is killed, within 200 ms", "an experiment's setting"),
    ("docs/how-to/take-snapshots.md", "when loading took 50 ms or more", "a policy's setting"),
)


def prose_of(page: Path) -> str:
    """Return a page without what is made from the record, and without code."""
    text = rendering.without_regions(page.read_text(encoding="utf-8"))
    blank = lambda match: "\n" * match[0].count("\n")  # noqa: E731
    text = re.sub(r"(?ms)^ *```.*?^ *```$", blank, text)
    return re.sub(r"`[^`\n]*`", "``", text)


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return rendering.read_record()


# ---------------------------------------------------------------- pages


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_numbers_of_a_page_are_the_records(page: Path, record: dict[str, Any]) -> None:
    text = page.read_text(encoding="utf-8")
    assert rendering.render(text, record) == text, (
        f"{page.name} has other numbers than docs/benchmarks.json; run:"
        " python -m benchmarks.summary --render"
    )


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_no_number_of_a_page_is_measured_and_not_the_records(page: Path) -> None:
    if page.is_relative_to(HISTORY):
        pytest.skip("dated history")
    name = str(page.relative_to(REPOSITORY))
    found = [
        f"{name}:{number}: {match[0]!r}"
        for number, line in enumerate(prose_of(page).splitlines(), 1)
        for match in MEASURED.finditer(line)
        if not any(name == where and text in line for where, text, _ in ALLOWED)
    ]
    assert not found, (
        "measured numbers come from docs/benchmarks.json, between markers (see"
        " benchmarks/_rendering.py); a setting goes into ALLOWED:\n" + "\n".join(found)
    )


def test_every_number_that_is_allowed_is_still_there() -> None:
    for name, text, why in ALLOWED:
        assert text in prose_of(REPOSITORY / name), f"{name} no longer has {text!r}, {why}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_markers_of_a_page_are_whole_and_name_benchmarks(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"(?m)^<!-- benchmarks: (.+?) -->$", text)
    numbers = re.findall(r"<!-- n: (.+?) -->", text)
    assert len(blocks) == text.count("<!-- /benchmarks -->") == text.count("<!-- benchmarks:")
    assert len(numbers) == text.count("<!-- /n -->")
    assert set(blocks) <= {*rendering.BLOCKS, *summary.BENCHMARKS}
    assert {name.partition(";")[0] for name in numbers} <= set(summary.BENCHMARKS)
    assert not re.search(r"(?m)^ *<!-- n:", text), "a number must not begin a line"


def test_every_benchmark_has_its_table_on_some_page() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in (*summary.BENCHMARKS, *rendering.BLOCKS):
        assert f"<!-- benchmarks: {name} -->" in texts, name


@pytest.mark.parametrize(
    "text",
    [
        "drains 4.4 times as fast", "3 \u00d7 as many", "| 1,332 (1,299-2,703) |", "takes 0.8 ms",
        "12-14 µs of it", "58 % of the time", "ten times as many", "20,000 events a second",
    ],
)  # fmt: skip
def test_a_number_that_was_measured_is_seen(text: str) -> None:
    assert MEASURED.search(text)


def test_a_changed_number_in_a_page_is_written_anew(record: dict[str, Any]) -> None:
    # given
    row = next(row for row in rendering.rows_of(record, "locks") if row["ratios"])
    (party, *_) = row["ratios"]
    marker = f"<!-- n: locks; {row['measure']}; {party}; median -->"
    page = (
        f"It takes {marker}99.9<!-- /n --> times.\n"
        "<!-- benchmarks: locks -->\nold\n<!-- /benchmarks -->\n"
    )
    # when
    made = rendering.render(page, record)
    # then
    assert "99.9" not in made
    assert "old" not in made
    assert row["measure"] in made.partition("<!-- benchmarks: locks -->")[2]
    assert rendering.render(made, record) == made


def test_a_row_that_was_not_measured_is_said_to_be_so(record: dict[str, Any]) -> None:
    without = copy.deepcopy(record) | {"benchmarks": {}}
    for page in PAGES:
        rendering.render(page.read_text(encoding="utf-8"), without)
    assert rendering.NOT_MEASURED in rendering.inline_text(without, "locks; no such row; ours")
    with pytest.raises(ValueError, match="expected a benchmark, a measure"):
        rendering.inline_text(record, "locks; p50")


# ---------------------------------------------------------------- the record


def test_the_record_judges_every_bar_by_the_median_that_it_shows(record: dict[str, Any]) -> None:
    for name, row, bar in rendering.bars_of(record):
        judged = Bar(bar["sign"], bar["value"], bar["to"]).is_met(row)
        assert judged == bar["met"], f"{name}: {row['measure']}: {bar}"
        assert bar["to"] is None or row["rounds"] >= 3, f"{name}: {row['measure']}"
    for name in record["benchmarks"]:
        for row in rendering.rows_of(record, name):
            for value in (row[OURS], *row["others"].values(), *row["ratios"].values()):
                assert value["least"] <= value["median"] <= value["most"], row["measure"]


def test_the_record_names_what_was_measured_and_on_what(record: dict[str, Any]) -> None:
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record["date"])
    assert set(record["benchmarks"]) == set(summary.BENCHMARKS)
    named = ("server", "PostgreSQL", "Celery", "Kombu", "redis-py", "SQLAlchemy", "Python")
    assert set(named) | {"machine"} <= set(record["versions"])
    rival = {one["what"] for one in record["left_out"]} | set(record["versions"])
    assert {"eventsourcing", "RabbitMQ"} <= rival


def test_the_records_commit_is_in_the_history(record: dict[str, Any]) -> None:
    if not summary.is_checkout():
        pytest.skip("not a Git checkout")
    if summary.git("rev-parse", "--is-shallow-repository") == "true":
        pytest.skip("a shallow clone")
    try:
        summary.git("merge-base", "--is-ancestor", record["commit"], "HEAD")
    except summary.NoGit:
        pytest.fail(f"{record['commit']} is not in this history; run: make bench")


def test_a_record_is_read_as_it_was_written(record: dict[str, Any], tmp_path: Path) -> None:
    summary.write_record(record, tmp_path / "record.json")
    assert rendering.read_record(tmp_path / "record.json") == record
    row = rendering.rows_of(record, "locks")[0]["measure"]
    (line,) = [
        line
        for line in (tmp_path / "record.json").read_text(encoding="utf-8").splitlines()
        if json.dumps(row, ensure_ascii=False) in line
    ]
    assert line.strip().rstrip(",").endswith("}")


# ---------------------------------------------------------------- check


def test_the_check_names_commits_on_hot_paths_that_are_newer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # given
    monkeypatch.setattr(summary, "is_checkout", lambda: True)
    monkeypatch.setattr(summary, "commits_since", lambda commit: ["abc1234 Speed up a take"])
    # when, then
    assert summary.check() == 1
    assert "abc1234 Speed up a take" in capsys.readouterr().err


def test_without_git_the_check_says_that_it_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # given: a record without flaws, in what is no checkout
    clean = rendering.read_record() | {"is_dirty": False, "failed": []}
    monkeypatch.setattr(summary, "read_record", lambda path: clean)
    monkeypatch.setattr(summary, "stale_pages", lambda record: [])
    monkeypatch.setattr(summary, "HIGHLIGHTS", ())
    monkeypatch.setattr(summary, "REPOSITORY", tmp_path)
    # when, then
    assert summary.check() == 0
    assert "not a Git checkout" in capsys.readouterr().out


def test_uncommitted_changes_on_hot_paths_are_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(summary, "code_measured", lambda: ("0" * 40, True))
    monkeypatch.setattr(summary, "measure_all", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr("sys.argv", ["summary"])
    with pytest.raises(SystemExit) as ended:
        summary.main()
    assert ended.value.code == 2
    assert "--allow-dirty" in capsys.readouterr().err


def test_a_hot_path_that_changes_while_it_is_measured_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # given: a measurement of nothing, in which a commit comes
    record = rendering.read_record() | {"failed": [], "commit": "0" * 40}
    monkeypatch.setattr(summary, "code_measured", lambda: ("0" * 40, False))
    monkeypatch.setattr(summary, "measure_all", lambda *_: record)
    monkeypatch.setattr(summary, "commits_since", lambda commit: ["abc1234 Speed up a take"])
    monkeypatch.setattr("sys.argv", ["summary", "--out", str(tmp_path / "record.json")])
    # when, then
    assert summary.main() == 1
    (failure,) = rendering.read_record(tmp_path / "record.json")["failed"]
    assert "abc1234" in failure["why"]


# ---------------------------------------------------------------- reports


def report_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **bars: list[Bar]) -> Report:
    arguments = ["any", "--short", "--json", str(tmp_path / "any.json")]
    monkeypatch.setattr("sys.argv", arguments)
    options = parse(parser_of("any", "Measure.", rounds=15), {"rounds": 3})
    assert options.rounds == 3
    return Report("any", options, bars)


def test_a_row_that_fails_is_reported_by_name_and_the_others_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: a row that fails in its second round, when only one party has been measured
    report = report_of(tmp_path, monkeypatch)

    def measure(name: str, number: int) -> None:
        report.note(name, OURS, 2.0)
        if name == "bad" and number == 1:
            raise RuntimeError("/tmp/some/where/log: 3 runs of 2 tasks")
        report.note(name, "stock", 1.0)

    # when
    for number in range(3):
        for name in ("good", "bad"):
            report.run(name, measure, name, number)
    code = report.finish()
    # then
    written = json.loads((tmp_path / "any.json").read_text())
    assert code == 1
    assert [row["measure"] for row in written["rows"]] == ["good"]
    assert written["rows"][0]["rounds"] == 3
    assert written["failed"] == [{"what": "bad", "why": "RuntimeError: …: 3 runs of 2 tasks"}]


def test_ratios_are_of_one_round_and_bars_are_judged_by_their_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    report = report_of(
        tmp_path, monkeypatch, rate=[Bar(">=", 2.0, "stock"), Bar("<", 5.0), Bar(">=", 1, "none")]
    )
    # when
    for ours, stock in ((4.0, 2.0), (9.0, 3.0), (3.0, 3.0)):
        report.note("rate", OURS, ours)
        report.note("rate", "stock", stock)
    (row,) = report.rows()
    # then
    assert row["ratios"]["stock"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert row[OURS] == {"median": 4.0, "least": 3.0, "most": 9.0}
    assert [(bar["to"], bar["met"]) for bar in row["bars"]] == [("stock", True), (None, True)]


def test_a_benchmark_that_breaks_is_named_and_the_next_one_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: two benchmarks, of which one ends before it reports
    room = tmp_path / "benchmarks"
    room.mkdir()
    (room / "__init__.py").touch()
    (room / "broken.py").write_text("raise RuntimeError('no server found')")
    (room / "whole.py").write_text(
        "import json, sys, pathlib\n"
        "row = {'measure': 'it', 'group': '', 'rounds': 3, 'others': {}, 'ratios': {}, 'bars': [],"
        " 'ours': {'median': 1.0, 'least': 1.0, 'most': 1.0}}\n"
        "report = {'facts': {}, 'versions': {'server': 'Valkey'}, 'rows': [row], 'failed': [],"
        " 'left_out': [{'what': 'RabbitMQ', 'why': 'not there'}]}\n"
        "pathlib.Path(sys.argv[-1]).write_text(json.dumps(report))\n"
    )
    monkeypatch.setattr(summary, "REPOSITORY", tmp_path)
    # when
    record = summary.measure_all(["broken", "whole"], "false", "0" * 40, False)
    summary.print_record(record)
    # then
    (failure,) = record["failed"]
    assert (failure["benchmark"], failure["what"]) == ("broken", "all of it")
    assert "no server found" in failure["why"]
    assert record["left_out"] == [{"benchmark": "whole", "what": "RabbitMQ", "why": "not there"}]
    assert [row["measure"] for row in record["benchmarks"]["whole"]["rows"]] == ["it"]
