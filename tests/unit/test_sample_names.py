"""The sample is what users copy: it uses the public names of cqrs_celery, and no others."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import cqrs_celery
from tests.nodes import REPOSITORY


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield each import in the sample: file, module, name ("" for the module itself)."""
    for path in sorted((REPOSITORY / "sample_app").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield from ((path.name, node.module or "", alias.name) for alias in node.names)


def test_the_sample_uses_public_names_only() -> None:
    found = [i for i in imports() if i[1].partition(".")[0] == "cqrs_celery"]
    assert found
    for file, module, name in found:
        assert module == "cqrs_celery", f"{file} imports {module}"
        assert name in cqrs_celery.__all__, f"{file} imports {name}"


def test_the_direct_computation_knows_nothing_of_the_library() -> None:
    used = {module for file, module, _ in imports() if file == "expected.py"}
    assert used <= {
        "__future__",
        "collections",
        "collections.abc",
        "dataclasses",
        "sample_app.data",
    }
    assert not [i for i in imports() if i[0] == "__init__.py" and "cqrs_celery" in i[1]]
