"""Find English in code and docs that a program can find; the chapter of the style guide has more.

    python -m tests.prose

It ends with 1 if anything is found. A function for each kind of finding; `findings` has all.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

#: Modules that were named by a private metaphor, and have the field's word now.
METAPHORS = {
    "hand", "holder", "pace", "glance", "hungry", "wire", "line", "load", "room", "take_along",
    "handover", "merging",
}  # fmt: skip

_FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
#: "Has it committed before, the handler …": a condition without "if".
_INVERTED = re.compile(
    r"(?:^|[.:;]\s+|\n\s*-\s+)((?:Has|Have|Had|Is|Are|Was|Were|Does|Should)\s"
    r"(?:it|they|he|she|one|this|that|there|the|an?|its|nobody|somebody)\b[^.?!:;\n]*,)"
)
_PLANNING = re.compile(r"\b(house|rooms?)\b", re.IGNORECASE)
#: "room" for space is a word like any other.
_SPACE = re.compile(
    r"\b(?:no|more|make|makes|made|has|have|had|find|finds|found|enough|little|is|was|for)\s+"
    r"(?:no\s+|more\s+)?room\b|\broom\s+for\b", re.IGNORECASE,
)  # fmt: skip


class Docstring(NamedTuple):
    """A docstring, and what has it."""

    line: int
    name: str
    is_class: bool
    text: str


def docstrings(tree: ast.AST) -> list[Docstring]:
    """Return the docstrings of a module, and of all that is in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                line, name = getattr(node, "lineno", 1), getattr(node, "name", "module")
                found.append(Docstring(line, name, isinstance(node, ast.ClassDef), text))
    return found


def imperative_docstrings(of: Iterable[Docstring]) -> Iterator[str]:
    """Yield docstrings that begin with "Be" or "Say"."""
    for one in of:
        if re.match(r"(?:Be|Say)\b", one.text):
            kind = "class" if one.is_class else "function"
            yield f"{one.line} {kind} {one.name}: {one.text.splitlines()[0]}"


def inverted_conditions(text: str) -> Iterator[str]:
    """Yield conditions without "if": "Has it failed, …"."""
    for match in _INVERTED.finditer(text):
        yield " ".join(match[1].split())


def planning_words(text: str) -> Iterator[str]:
    """Yield "house" and "room", where they mean the layout and its packages."""
    for match in _PLANNING.finditer(_SPACE.sub("", text)):
        yield match[0]


def metaphors(path: Path) -> Iterator[str]:
    """Yield a module's or a folder's name if it is a private metaphor."""
    for part in (*path.parts[:-1], path.stem):
        if part in METAPHORS:
            yield part


def findings(root: Path) -> Iterator[str]:
    """Yield what is found in a tree: in the package, the README and the docs."""
    for path in sorted((root / "cqrs_celery").rglob("*.py")):
        place = path.relative_to(root)
        for name in metaphors(place):
            yield f"{place}: the module's name {name} is a private metaphor"
        texts = docstrings(ast.parse(path.read_text(encoding="utf-8")))
        for one in imperative_docstrings(texts):
            yield f"{place}:{one}"
        for docstring in texts:
            for condition in inverted_conditions(docstring.text):
                yield f"{place}:{docstring.line}: a condition without if: {condition}"
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        if not path.exists():
            continue
        place = path.relative_to(root)
        prose = _FENCED.sub("", path.read_text(encoding="utf-8"))
        for condition in inverted_conditions(prose):
            yield f"{place}: a condition without if: {condition}"
        for word in planning_words(prose):
            yield f"{place}: {word}, where layout, package or layer is meant"


def main() -> int:
    """Print what is found; return 1 if anything is."""
    found = list(findings(ROOT))
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
