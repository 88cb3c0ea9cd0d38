"""Measure how a package is laid out: module sizes, functions, import circles, sniffing, English.

    python -m tests.layout [FOLDER] [--json FILE]

FOLDER is that of a package, `cqrs_celery` by default; it may be that of an older commit's tree. It
is only parsed, never imported.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.prose import docstrings, imperative_docstrings

MODULE_LINES, FUNCTION_LINES = 400, 50

#: Names under which the package's code holds a store, an outbox, or another port.
PORTS = (
    "store", "stores", "snapshots", "outbox", "subscriptions", "relay", "engine", "event_store",
    "snapshot_store", "bare_store", "inner", "destination",
)  # fmt: skip

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Layout:
    """What was measured of a package."""

    modules: int = 0
    median_lines: float = 0
    longest: list[tuple[str, int]] = field(default_factory=list)
    long_modules: list[tuple[str, int]] = field(default_factory=list)
    long_functions: list[tuple[str, int]] = field(default_factory=list)
    circles: list[list[str]] = field(default_factory=list)
    sniffing: list[str] = field(default_factory=list)
    imperative: list[str] = field(default_factory=list)


def measure(folder: Path) -> Layout:
    """Measure a package's folder."""
    sources = {
        path: path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py"))
        if "__pycache__" not in path.parts
    }
    trees = {path: ast.parse(source) for path, source in sources.items()}
    lines = {str(p.relative_to(folder)): len(s.splitlines()) for p, s in sources.items()}
    by_length = sorted(lines.items(), key=lambda one: (-one[1], one[0]))
    found = Layout(
        modules=len(lines),
        median_lines=statistics.median(lines.values()) if lines else 0,
        longest=by_length[:1],
        long_modules=[one for one in by_length if one[1] > MODULE_LINES],
    )
    for path, tree in trees.items():
        name = str(path.relative_to(folder))
        found.long_functions += [
            (f"{name}:{node.lineno} {node.name}", length)
            for node in ast.walk(tree)
            if isinstance(node, Function)
            and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES
        ]
        found.sniffing += [f"{name}:{place}" for place in sniffing(tree)]
        found.imperative += [f"{name}:{one}" for one in imperative_docstrings(docstrings(tree))]
    found.long_functions.sort(key=lambda one: -one[1])
    found.circles = circles(import_graph(folder, trees))
    return found


def sniffing(tree: ast.AST) -> Iterator[str]:
    """Yield each `hasattr`, or `getattr` with a literal name, of something named as a port."""
    for node in ast.walk(tree):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("hasattr", "getattr")
            and len(node.args) >= 2
            and isinstance(node.args[1], ast.Constant)
        ):
            continue
        owner = ast.unparse(node.args[0])
        if owner.rpartition(".")[2].lstrip("_") in PORTS:
            yield f"{node.lineno} {ast.unparse(node)}"


def import_graph(folder: Path, trees: dict[Path, ast.Module]) -> dict[str, set[str]]:
    """Return the package's modules, each with those it imports, for types or wherever."""
    names = {path: _module(folder, path) for path in trees}
    known = set(names.values())
    graph: dict[str, set[str]] = {name: set() for name in known}
    for path, tree in trees.items():
        name = names[path]
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = _base(package, node)
                inside = [f"{base}.{alias.name}" for alias in node.names]
                wanted = [one if one in known else base for one in inside]
            else:
                continue
            graph[name].update(one for one in wanted if one in known and one != name)
    return graph


def _module(folder: Path, path: Path) -> str:
    parts = [folder.name, *path.relative_to(folder).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _base(package: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one module, sorted."""
    order: list[str] = []
    seen: set[str] = set()
    for start in sorted(graph):
        _visit(graph, start, seen, order)
    backwards: dict[str, set[str]] = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others:
            backwards[other].add(name)
    done: set[str] = set()
    found = []
    for name in reversed(order):
        component: list[str] = []
        _visit(backwards, name, done, component)
        if len(component) > 1:
            found.append(sorted(component))
    return sorted(found)


def _visit(graph: dict[str, set[str]], start: str, seen: set[str], order: list[str]) -> None:
    """Append what is reached from a module, and was not seen, each after what it leads to."""
    if start in seen:
        return
    seen.add(start)
    stack = [(start, iter(sorted(graph[start])))]
    while stack:
        name, others = stack[-1]
        for other in others:
            if other not in seen:
                seen.add(other)
                stack.append((other, iter(sorted(graph[other]))))
                break
        else:
            order.append(name)
            stack.pop()


def report(found: Layout) -> str:
    """Return what was measured, for people."""
    (name, lines) = found.longest[0] if found.longest else ("none", 0)
    text = [f"modules {found.modules}, median {found.median_lines:g} lines, longest {name} {lines}"]
    for title, places in (
        (f"modules above {MODULE_LINES} lines", [f"{n} {c}" for n, c in found.long_modules]),
        (f"functions above {FUNCTION_LINES} lines", [f"{n} {c}" for n, c in found.long_functions]),
        ("import circles", [" ".join(one) for one in found.circles]),
        ("sniffing of stores and ports", found.sniffing),
        ('docstrings that begin with "Be" or "Say"', found.imperative),
    ):
        text += [f"{title}: {len(places)}", *(f"    {place}" for place in places)]
    return "\n".join(text)


def main() -> None:
    """Measure the folder that the command names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("cqrs_celery"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    chosen = parser.parse_args()
    found = measure(chosen.folder)
    print(report(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(asdict(found), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
