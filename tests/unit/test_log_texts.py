"""Each line of the log names what it is about, in its text: Celery's format shows nothing else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import cqrs_celery

PACKAGE = Path(cqrs_celery.__file__).parent
METHODS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, list[ast.expr]]]:
    """Yield the calls of loggers, each with its text and what is put into it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            if owner.endswith("logger") and node.func.attr in METHODS:
                yield node, node.args[1:] if node.func.attr == "log" else node.args


def nameless(source: str) -> list[str]:
    """Return the lines whose text has no place for what they are about, or is an f-string."""
    return [
        f"line {call.lineno}: {ast.unparse(call)[:80]}"
        for call, args in calls(ast.parse(source))
        if len(args) < 2 or isinstance(args[0], ast.JoinedStr)
    ]


@pytest.mark.parametrize("line", [
    "logger.info('subscription registered', extra={'queue': queue})",
    "self._logger.log(level, 'relay active')",
    "logger.error(f'lease of {name} lost', name)",
])  # fmt: skip
def test_a_line_that_names_nothing_is_found(line: str) -> None:
    assert nameless(line)


def test_every_line_of_the_log_names_what_it_is_about() -> None:
    sources = sorted(PACKAGE.rglob("*.py"))
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in sources
        if (lines := nameless(path.read_text(encoding="utf-8")))
    }
    assert not found
    count = sum(len(list(calls(ast.parse(path.read_text(encoding="utf-8"))))) for path in sources)
    assert count > 40
