"""Find English in code and docs that a program can find; the chapter of the style guide has more.

    python -m tests.prose

It ends with 1 if anything is found. A function for each kind of finding; `findings` has all.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

#: Modules that were named by a private metaphor, and have the field's word now.
METAPHORS = {
    "hand", "holder", "pace", "glance", "hungry", "wire", "line", "load", "room", "take_along",
    "handover", "merging",
}  # fmt: skip

#: Packages whose texts were rewritten by the style guide; further checks hold for them.
REWRITTEN = ("store", "messages", "domain", "workers", "cli", "backends/redis", "backends/memory")

#: Verbs that begin a function's docstring. A class's is a noun phrase.
_VERB = re.compile(
    r"(?:Add|Append|Bring|Call|Check|Collect|Count|Find|Follow|Forget|Get|Give|Hold|Keep|Know|Let|"
    r"Log|Make|Move|Note|Provide|Publish|Put|Read|Remember|Return|Run|Send|Take|Tell|Turn|Wait|"
    r"Write|Yield)\b|(?:What|Who|How)\b"
)
#: "application: whose.", "version: of the content's shape.": an entry without a noun.
_BARE = re.compile(r"^ +(\w+: (?:whose|ours|theirs|of|in front of)\b[^\n]*)", re.MULTILINE)
#: What a reader has to read twice, with what to write in its place.
_RIDDLES = {
    r"a second (?:time|call)[^.;]{0,20} do(?:es)? nothing": '"Calling it again has no effect"',
    r"(?:behind|in front of) (?:a|the|this|its|that) (?:position|place|snapshot|version)":
        '"after", "before"',
    r"\b(?:gives?|giving) (?:bytes|seconds)": '"returns"',
    r"\basked once (?:per|a)\b": '"called once per"',
    r"; says whether": '"; return whether"',
    r"(?<!there )(?<!There )\bis no (?:error|conflict|failure|number|text|event|field)\b":
        '"is not a"',
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


def verbal_class_docstrings(of: Iterable[Docstring]) -> Iterator[str]:
    """Yield classes' docstrings that begin with a verb or a question word, as a function's may."""
    for one in of:
        if one.is_class and _VERB.match(one.text):
            yield f"{one.line} class {one.name}: {one.text.splitlines()[0]}"


def bare_entries(text: str) -> Iterator[str]:
    """Yield entries of a docstring's lists that have no noun: "application: whose."."""
    for match in _BARE.finditer(text):
        yield match[1]


def second_verbs(text: str) -> Iterator[str]:
    """Yield first lines whose second verb is no imperative: "Delete it; returns how many."."""
    first = text.split("\n", 1)[0]
    if re.search(r"[;.] [Rr]eturns\b", first):
        yield first


def riddles(text: str) -> Iterator[tuple[str, str]]:
    """Yield phrases that have to be read twice, each with a better one."""
    joined = " ".join(text.split())
    for pattern, better in _RIDDLES.items():
        for match in re.finditer(pattern, joined):
            yield match[0], better


def planning_words(text: str) -> Iterator[str]:
    """Yield "house" and "room", where they mean the layout and its packages."""
    for match in _PLANNING.finditer(_SPACE.sub("", text)):
        yield match[0]


def metaphors(path: Path) -> Iterator[str]:
    """Yield a module's or a folder's name if it is a private metaphor."""
    for part in (*path.parts[:-1], path.stem):
        if part in METAPHORS:
            yield part


def rewritten_findings(place: Path, source: str, texts: Sequence[Docstring]) -> Iterator[str]:
    """Yield what is found in a module whose texts were rewritten by the style guide."""
    for one in verbal_class_docstrings(texts):
        yield f"{place}:{one}"
    for docstring in texts:
        for entry in bare_entries(docstring.text):
            yield f"{place}:{docstring.line}: an entry without a noun: {entry}"
        for first in second_verbs(docstring.text):
            yield f'{place}:{docstring.line}: "returns" after a verb, for "return": {first}'
    for phrase, better in riddles(source):
        yield f"{place}: {phrase!r}, for {better}"


def findings(root: Path) -> Iterator[str]:
    """Yield what is found in a tree: in the package, the README and the docs."""
    for path in sorted((root / "cqrs_celery").rglob("*.py")):
        place = path.relative_to(root)
        for name in metaphors(place):
            yield f"{place}: the module's name {name} is a private metaphor"
        source = path.read_text(encoding="utf-8")
        texts = docstrings(ast.parse(source))
        for one in imperative_docstrings(texts):
            yield f"{place}:{one}"
        for docstring in texts:
            for condition in inverted_conditions(docstring.text):
                yield f"{place}:{docstring.line}: a condition without if: {condition}"
        if place.as_posix().startswith(tuple(f"cqrs_celery/{one}/" for one in REWRITTEN)):
            yield from rewritten_findings(place, source, texts)
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
