"""Print which test shows which of the behaviours that the predecessor's users rely on.

    python -m tests.acceptance

A test names their numbers in its docstring: `ACCEPTANCE 46-48, 50 and 52`, or at its beginning:
`46-48: …`.
"""
# ruff: noqa: T201

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "cqrs_celery" / "testing"

#: All numbers; two were never given.
NUMBERS = [n for n in range(1, 94) if n not in (66, 79)]

_LIST = r"(\d+(?:(?:-|–|, | and )\d+)*)"  # noqa: RUF001
_NAMED = re.compile(rf"(?:ACCEPTANCE {_LIST}(?![\d,]*\d{{3}})|^{_LIST}:)")


def numbers_in(text: str) -> Iterator[int]:
    """Yield the numbers that a docstring names."""
    for found in map(max, _NAMED.findall(text)):
        for part in re.split(r", | and ", found):
            first, _, last = part.replace("–", "-").partition("-")  # noqa: RUF001
            yield from range(int(first), int(last or first) + 1)


def shown() -> dict[int, list[str]]:
    """Return the tests by number, each as "<file>::<name>"."""
    tests: dict[int, list[str]] = defaultdict(list)
    for path in sorted([*TESTS.rglob("*.py"), *PACKAGE.rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for number in numbers_in(ast.get_docstring(node) or ""):
                    tests[number].append(f"{path.relative_to(TESTS.parent)}::{node.name}")
    return tests


def main() -> None:
    """Print the table; the exit code is 1 if a number has no test."""
    tests = shown()
    for number in NUMBERS:
        for name in tests.get(number, ["MISSING"]):
            print(f"{number:3}  {name}")
    missing = [number for number in NUMBERS if number not in tests]
    if missing:
        sys.exit(f"without a test: {', '.join(map(str, missing))}")


if __name__ == "__main__":
    main()
