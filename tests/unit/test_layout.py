"""The measures of the layout find what they are for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout import Layout, circles, measure, report
from tests.nodes import REPOSITORY


def package_of(folder: Path, **modules: str) -> Path:
    """Make a package; a double underscore in a name stands for a folder."""
    package = folder / "house"
    for name, source in {"__init__": "", **modules}.items():
        path = package / ("__init__.py" if name == "__init__" else f"{name.replace('__', '/')}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        (path.parent / "__init__.py").touch()
    return package


def test_sizes_are_measured(tmp_path: Path) -> None:
    lines = ["def f():", *["    pass"] * 50, *["x = 1"] * 350]
    found = measure(package_of(tmp_path, long="\n".join(lines), short="x = 1\ny = 2\n"))
    assert found.modules == 3
    assert found.median_lines == 2
    assert found.longest == [("long.py", 401)]
    assert found.long_modules == [("long.py", 401)]
    assert found.long_functions == [("long.py:1 f", 51)]


def test_what_is_just_short_enough_is_not_reported(tmp_path: Path) -> None:
    lines = ["def f():", *["    pass"] * 49, *["x = 1"] * 350]
    found = measure(package_of(tmp_path, long="\n".join(lines)))
    assert found.long_modules == []
    assert found.long_functions == []


@pytest.mark.parametrize("back", [
    "from .a import X",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import X",
    "def f():\n    from . import a",
    "import house.a",
    "from house.a import X",
])  # fmt: skip
def test_circles_are_found_wherever_the_import_stands(tmp_path: Path, back: str) -> None:
    found = measure(package_of(tmp_path, a="from . import b", b=back, c="from . import a"))
    assert found.circles == [["house.a", "house.b"]]


def test_a_circle_across_folders_is_found(tmp_path: Path) -> None:
    found = measure(
        package_of(tmp_path, one__a="from ..two.b import X", two__b="from ..one import a")
    )
    assert found.circles == [["house.one.a", "house.two.b"]]


def test_circles_are_whole_components() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert circles(graph) == [["a", "b", "c"], ["d", "e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_sniffing_of_stores_is_found_and_of_others_is_not(tmp_path: Path) -> None:
    source = (
        "hasattr(store, 'engine')\ngetattr(self._store, 'outbox', None)\n"
        "getattr(store, name)\nhasattr(task, 'queue')\nstore.engine\n"
    )
    assert measure(package_of(tmp_path, a=source)).sniffing == [
        "a.py:1 hasattr(store, 'engine')",
        "a.py:2 getattr(self._store, 'outbox', None)",
    ]


def test_imperative_docstrings_are_found(tmp_path: Path) -> None:
    found = measure(package_of(tmp_path, a='class A:\n    """Be something."""\n'))
    assert found.imperative == ["a.py:1 class A: Be something."]
    assert "a.py:1 class A: Be something." in report(found)


def test_the_command_measures_a_folder_and_writes_json(tmp_path: Path) -> None:
    package, file = package_of(tmp_path, a="from . import b", b="from . import a"), tmp_path / "o"
    done = subprocess.run(
        [sys.executable, "-m", "tests.layout", str(package), "--json", str(file)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "import circles: 1" in done.stdout
    assert set(json.loads(file.read_text())) == set(vars(Layout()))


def test_the_package_has_no_circle_no_guess_at_a_store_and_one_long_module() -> None:
    found = measure(REPOSITORY / "cqrs_celery")
    assert found.circles == []
    assert found.sniffing == []
    # the tree of errors is one thing, as its header says
    assert [name for name, _ in found.long_modules] == ["errors.py"]
