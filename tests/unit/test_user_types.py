"""What a type checker says about a user's program: nothing if it is right, and where it is wrong.

The programs are in tests/programs, and no modules, so that the checks of this project pass over
them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import REPOSITORY

PROGRAMS = REPOSITORY / "tests" / "programs"

Checker = Callable[[Path], set[int]]

#: A checker's first run reads the package and what that imports.
pytestmark = pytest.mark.timeout(300)


def lines_found_by_mypy(program: Path) -> set[int]:
    """Return the lines in which mypy, as strict as can be, finds an error."""
    options = ["--config-file=", "--strict", "--follow-imports=silent", "--no-pretty"]
    said = run(
        "mypy", *options, f"--cache-dir={program.parent / 'cache'}", program.name, at=program
    )
    return {int(line) for line in re.findall(rf"^{program.name}:(\d+): error:", said, re.MULTILINE)}


def lines_found_by_basedpyright(program: Path) -> set[int]:
    """Return the lines in which basedpyright, in its strict mode, finds an error."""
    if importlib.util.find_spec("basedpyright") is None and not os.environ.get("CI"):
        pytest.skip("basedpyright is not installed; make setup installs it")
    config = {"typeCheckingMode": "strict", "extraPaths": [str(REPOSITORY)]}
    (program.parent / "pyrightconfig.json").write_text(json.dumps(config), encoding="utf-8")
    options = ["--outputjson", "--pythonpath", sys.executable]
    said = json.loads(run("basedpyright", *options, program.name, at=program))
    assert said["summary"]["filesAnalyzed"] == 1
    return {
        one["range"]["start"]["line"] + 1
        for one in said["generalDiagnostics"]
        if one["severity"] == "error"
    }


def run(module: str, *arguments: str, at: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=at.parent,
        env={**os.environ, "MYPYPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(params=[lines_found_by_mypy, lines_found_by_basedpyright])
def find_errors(request: pytest.FixtureRequest) -> Checker:
    checker: Checker = request.param
    return checker


def program(name: str, directory: Path) -> Path:
    path = directory / f"{name}.py"
    path.write_text((PROGRAMS / f"{name}.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_a_right_program_has_no_errors(find_errors: Checker, tmp_path: Path) -> None:
    assert find_errors(program("right", tmp_path)) == set()


def test_a_wrong_program_has_its_errors_where_they_are_marked(
    find_errors: Checker, tmp_path: Path
) -> None:
    # given
    path = program("wrong", tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(marked) > 25
    # when
    found = find_errors(path)
    # then
    assert found == marked
