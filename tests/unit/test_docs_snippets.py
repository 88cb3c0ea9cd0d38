"""Run every snippet of README.md and docs/, in the order of its page, and compare its output.

A page is run in a folder of its own. A comment before a fence says what is special about it:

    <!-- not run: why -->             it needs what no test has
    <!-- background -->               started; goes on until the page ends, its output awaited
    <!-- eventually -->               repeated until its output has come

Anywhere in a page, `<!-- goes on from: <page> -->` says that the files of that page are there too.

By language: `python` with a title is a file; without one it runs in the page's interpreter, as
`pycon` does, whose answers are compared. `console` is commands, each with its output, where `...`
stands for anything. `yaml` and `json` are parsed. Anything else must be `text`. Of the texts that
run, one thing is changed: the port 6379 becomes a free one.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import require_server
from tests.nodes import REPOSITORY, free_port

DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]

#: Seconds until a background command must have said what it says, and an output must have come.
DEADLINE_S = 60.0

RUN = ("python", "pycon", "console")
PARSED = ("yaml", "json")
SHOWN = ("text",)

FENCE = re.compile(
    r"(?P<comments>(?:^<!--[^\n]*-->\n\n?)*)^(?P<indent> *)```(?P<language>\S*)(?P<info>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMENT = re.compile(r"^<!-- (?P<word>[a-z ]+?)(?:: (?P<rest>[^\n]*))? -->$", re.MULTILINE)
TITLE = re.compile(r'title="([^"]+)"')
GOES_ON_FROM = re.compile(r"^<!-- goes on from: (\S+) -->$", re.MULTILINE)
WORDS = ("not run", "background", "eventually")

INTERPRETER = """
import contextlib, doctest, io, json, sys, traceback
sys.path.insert(0, ".")
namespace = {"__name__": "__main__"}
for line in sys.stdin:
    kind, text, place = json.loads(line)
    said, error = io.StringIO(), ""
    with contextlib.redirect_stdout(said):
        try:
            if kind == "pycon":
                test = doctest.DocTestParser().get_doctest(text, namespace, place, None, 0)
                flags = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
                doctest.DocTestRunner(optionflags=flags).run(test, clear_globs=False)
                namespace.update(test.globs)
                error = said.getvalue()
            else:
                exec(compile(text, place, "exec"), namespace)
        except BaseException:
            error = traceback.format_exc()
    print(json.dumps([said.getvalue(), error]), flush=True)
"""


@dataclass(frozen=True)
class Snippet:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    words: dict[str, str]

    @property
    def place(self) -> str:
        """Where it stands."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def is_run(self) -> bool:
        """Whether the page's test must run it."""
        return self.language in RUN and "not run" not in self.words


def snippets_of(page: Path) -> list[Snippet]:
    """Return a page's fenced blocks in order."""
    source, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(source):
        indent = len(match["indent"])
        title = TITLE.search(match["info"])
        found.append(
            Snippet(
                page,
                source.count("\n", 0, match.start("language")) + 1,
                match["language"],
                title[1] if title else "",
                "".join(line[indent:] or "\n" for line in match["text"].splitlines(keepends=True)),
                {word["word"]: word["rest"] or "" for word in COMMENT.finditer(match["comments"])},
            )
        )
    return found


class Page:
    """Run one page's snippets in a folder, and keep count of what was run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.run: list[str] = []
        self._background: list[subprocess.Popen[str]] = []
        self._interpreter: subprocess.Popen[str] | None = None
        scripts = str(Path(sys.executable).parent)
        self._env = {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
        }

    def do(self, snippet: Snippet) -> None:
        """Run one snippet."""
        text = snippet.text.replace("6379", self.port)
        if snippet.title:
            self.write(snippet)
        elif snippet.language == "console":
            for command, expected in _commands(text):
                if "background" in snippet.words:
                    self._start(snippet, command, expected)
                else:
                    self._check(snippet, command, expected)
        else:
            self._execute(snippet, text)
        self.run.append(snippet.place)

    def write(self, snippet: Snippet) -> None:
        """Write a file that the page shows."""
        text = snippet.text.replace("6379", self.port)
        if snippet.language == "python":
            compile(text, snippet.place, "exec")
        path = self.folder / snippet.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _popen(self, command: list[str], **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder, env=self._env, text=True, start_new_session=True, **options,
        )  # fmt: skip

    def _check(self, snippet: Snippet, command: str, expected: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            process = self._popen(
                ["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            try:
                found, _ = process.communicate(timeout=DEADLINE_S)
            finally:
                _end(process, signal.SIGKILL)
            if _matches(expected, found):
                return
            if "eventually" not in snippet.words or time.monotonic() > deadline:
                pytest.fail(
                    f"{snippet.place}: $ {command}\nexpected:\n{expected}\nfound:\n{found}\n"
                    f"{self.background_output()}",
                    pytrace=False,
                )

    def _start(self, snippet: Snippet, command: str, expected: str) -> None:
        log = self.folder / f".background-{len(self._background)}.log"
        with log.open("w") as output:
            process = self._popen(["sh", "-c", f"exec {command}"], stdout=output, stderr=output)
        self._background.append(process)
        deadline = time.monotonic() + DEADLINE_S
        pieces = [piece for line in expected.split("\n") for piece in _pieces(line)]
        while not _has_in_order(pieces, log.read_text()):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(
                    f"{snippet.place}: $ {command}\nexpected:\n{expected}\nfound:\n"
                    f"{log.read_text()}",
                    pytrace=False,
                )
            select.select([], [], [], 0.05)

    def _execute(self, snippet: Snippet, text: str) -> None:
        if self._interpreter is None:
            self._interpreter = self._popen(
                [sys.executable, "-c", INTERPRETER],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + DEADLINE_S
        while error := self._answer(self._interpreter, snippet, text):
            if "eventually" not in snippet.words or time.monotonic() > deadline:
                pytest.fail(f"{snippet.place}\n{error}\n{self.background_output()}", pytrace=False)

    def _answer(self, interpreter: subprocess.Popen[str], snippet: Snippet, text: str) -> str:
        assert interpreter.stdin is not None
        assert interpreter.stdout is not None
        interpreter.stdin.write(json.dumps([snippet.language, text, snippet.place]) + "\n")
        interpreter.stdin.flush()
        lines = []
        while not (line := interpreter.stdout.readline()).startswith('["'):
            lines.append(line)
            assert line, f"{snippet.place}: the interpreter ended\n{''.join(lines)}"
        return str(json.loads(line)[1])

    def background_output(self) -> str:
        """Return the last lines of what runs in the background."""
        logs = sorted(self.folder.glob(".background-*.log"))
        return "\n".join(f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs)

    def close(self) -> None:
        """End what runs, what was started last first."""
        if self._interpreter is not None:
            assert self._interpreter.stdin is not None
            self._interpreter.stdin.close()
            try:
                self._interpreter.wait(10)
            finally:
                _end(self._interpreter, signal.SIGKILL)
                assert self._interpreter.stdout is not None
                self._interpreter.stdout.close()
        for process in reversed(self._background):
            _end(process, signal.SIGKILL)


def _end(process: subprocess.Popen[str], number: int) -> None:
    """End a process and whatever it has started in its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(10)


def _commands(text: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a console block, with its output."""
    parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not parts[0], f"a console block begins with $, not with {parts[0]!r}"
    for part in parts[1:]:
        lines = part.split("\n")
        command = [lines.pop(0)]
        while command[-1].endswith("\\"):
            command.append(lines.pop(0))
        yield "\n".join(command), "\n".join(lines).strip()


def _pieces(expected: str) -> list[str]:
    return expected.strip().split("...")


def _has_in_order(pieces: list[str], found: str) -> bool:
    """Whether the pieces stand in a text one after another, in time linear in its length.

    A regular expression with `.*` between them says the same, but takes minutes to say no.
    """
    end = 0
    for piece in pieces:
        start = found.find(piece, end)
        if start < 0:
            return False
        end = start + len(piece)
    return True


def _matches(expected: str, found: str) -> bool:
    """Whether a text is what is expected, from its first character to its last."""
    first, *rest = _pieces(expected)
    found = found.strip()
    if not rest:
        return found == first
    *middle, last = rest
    return (
        len(found) >= len(first) + len(last)
        and found.startswith(first)
        and found.endswith(last)
        and _has_in_order(middle, found[len(first) : len(found) - len(last)])
    )


def test_pieces_are_found_in_order_and_a_long_text_without_the_last_is_refused_at_once() -> None:
    log = "celery@host ready.\n" * 500 + "succeeded in 0.1s: 3\n" * 500

    assert _has_in_order(["celery@", " ready.", "", "succeeded in ", ": 3"], log)
    assert not _has_in_order(["celery@", " ready.", "", "", "succeeded in ", ": 4"], log)
    assert not _has_in_order(["succeeded in", "ready."], log)


@pytest.mark.parametrize(
    ("expected", "found", "is_match"),
    [
        ("a", "a\n", True),
        ("a", "ab", False),
        ("...", "", True),
        ("a...b", "a\nc\nb", True),
        ("a...b", "ab", True),
        ("aba...ba", "aba", False),
        ("a...b...c", "axbyc", True),
        ("a...b...c", "acbx", False),
    ],
)
def test_an_output_is_compared_from_its_first_character_to_its_last(
    expected: str, found: str, is_match: bool
) -> None:
    assert _matches(expected, found) is is_match


def _files_before(page: Path) -> list[Snippet]:
    """Return the files of the pages that a page goes on from."""
    before = GOES_ON_FROM.findall(page.read_text(encoding="utf-8"))
    found = [snippets_of((page.parent / other).resolve()) for other in before]
    return [snippet for snippets in found for snippet in snippets if snippet.title]


def _needs_server(page: Path) -> bool:
    return any(
        snippet.is_run and ("embedded" in snippet.text or "background" in snippet.words)
        for snippet in snippets_of(page)
    )


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Page]:
    page = Page(tmp_path)
    yield page
    page.close()
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_pages_run_the_package_of_this_checkout_and_not_an_installed_one(runner: Page) -> None:
    (runner.folder / "where.py").write_text("import cqrs_celery\nprint(cqrs_celery.__file__)\n")
    package = REPOSITORY / "cqrs_celery" / "__init__.py"
    place = Snippet(DOCS / "index.md", 1, "console", "", f"$ python where.py\n{package}\n", {})
    runner.do(place)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(
            page,
            id=str(page.relative_to(REPOSITORY)),
            marks=[pytest.mark.integration] if _needs_server(page) else [],
        )
        for page in PAGES
        if any(snippet.is_run for snippet in snippets_of(page))
    ],
)
def test_every_snippet_does_what_its_page_says(page: Path, runner: Page) -> None:
    if _needs_server(page):
        require_server()
    snippets = snippets_of(page)
    for file in _files_before(page):
        runner.write(file)
    for snippet in snippets:
        if snippet.is_run:
            runner.do(snippet)
        elif snippet.title:
            runner.write(snippet)
    assert runner.run == [snippet.place for snippet in snippets if snippet.is_run]


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(REPOSITORY)) for page in PAGES])
def test_every_fence_is_run_parsed_or_says_why_not(page: Path) -> None:
    snippets = snippets_of(page)
    fences = re.findall(r"^ *```", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == 2 * len(snippets), "a fence is not closed, or is indented otherwise"
    for snippet in snippets:
        assert snippet.language in (*RUN, *PARSED, *SHOWN), (
            f"{snippet.place} has the language {snippet.language!r}; expected one of"
            f" {', '.join((*RUN, *PARSED, *SHOWN))}: what is no program is text"
        )
        assert set(snippet.words) <= set(WORDS), f"{snippet.place}: {snippet.words}"
        if "not run" in snippet.words:
            assert len(snippet.words["not run"].split()) > 1, f"{snippet.place}: say why"
            assert snippet.language in RUN, f"{snippet.place} would not be run anyway"
        if snippet.language == "python":
            compile(snippet.text, snippet.place, "exec")
        if snippet.language == "yaml":
            yaml.safe_load(snippet.text)
        if snippet.language == "json":
            json.loads(snippet.text)


def test_the_readmes_example_is_short_and_begins_in_its_first_15_lines() -> None:
    install, example, command = snippets_of(REPOSITORY / "README.md")[:3]
    assert "pip install" in install.text
    assert example.language == "python"
    assert example.is_run
    assert example.line <= 15
    code = [line for line in example.text.splitlines() if line]
    assert len(code) <= 25
    for node in ast.walk(ast.parse(example.text)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.If)):
            assert node.body[0].lineno > node.lineno, f"in one line: {ast.unparse(node)}"
    assert command.language == "console"
    assert f"python {example.title}" in command.text
    assert len(command.text.splitlines()) > 1, "its output is shown"
