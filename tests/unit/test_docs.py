"""The pages of the documentation hold together, and name what the code has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kombu.transport import redis as kombus

import cqrs_celery
from cqrs_celery import errors
from cqrs_celery.app import settings
from cqrs_celery.dispatch.options import FIXED
from cqrs_celery.transport.channel import Channel
from cqrs_celery.transport.options import OPTIONS
from tests.nodes import REPOSITORY

DOCS = REPOSITORY / "docs"
PACKAGE = REPOSITORY / "cqrs_celery"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *PAGES]
IDS = [str(page.relative_to(REPOSITORY)) for page in TEXTS]

#: Options that the settings page has in tables, and those of which it only says what they are not.
STOCK = {"ack_emulation", "body_encoding"}

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
TEST_LINK = re.compile(r"\[`(test_\w+)`\]\((tests/[\w/]+\.py)\)")
TEST_NAME = re.compile(r"`((?:tests|cqrs_celery/testing)/[\w/]+\.py)(?:::(test_\w+))?`")
#: Addresses of package registries and paths of somebody's machine.
PRIVATE = re.compile(r"/root/|/home/|/work/|/Users/|index-url|https?://[^\s)]*(?:pypi|simple)")


def prose_of(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors_of(page: Path) -> set[str]:
    headings = HEADING.findall(prose_of(page))
    plain = [re.sub(r"[^\w\s-]", "", heading).strip().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", text) for text in plain}


def nav_of(entries: Any) -> Iterator[str]:
    if isinstance(entries, str):
        yield entries
    elif isinstance(entries, dict):
        for entry in entries.values():
            yield from nav_of(entry)
    else:
        for entry in entries:
            yield from nav_of(entry)


# ------------------------------------------------------------ pages and links


def test_every_page_is_in_the_nav_once() -> None:
    nav = list(nav_of(yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_the_first_page_links_to_every_other_page() -> None:
    linked = set(LINK.findall((DOCS / "index.md").read_text(encoding="utf-8")))
    assert {str(page.relative_to(DOCS)) for page in PAGES} - linked == {"index.md"}


@pytest.mark.parametrize("page", TEXTS, ids=IDS)
def test_no_link_is_dead(page: Path) -> None:
    prose = prose_of(page)
    for link in [*LINK.findall(prose), *IMAGE.findall(prose)]:
        if re.match(r"https?://", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page.name} links to {link}"
        if page.is_relative_to(DOCS):
            assert path.is_relative_to(DOCS), f"{page.name} links out of the site: {link}"
        if anchor:
            assert anchor in anchors_of(path), f"{page.name}: {link} has no such heading"


@pytest.mark.parametrize("page", TEXTS, ids=IDS)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = [(file, name) for name, file in TEST_LINK.findall(text)] + TEST_NAME.findall(text)
    for file, name in named:
        source = (REPOSITORY / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, f"{page.name} names {file}::{name}"


def test_the_readme_is_short_and_its_guarantees_name_their_tests() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 150
    assert "(docs/reference/guarantees.md)" in readme
    table = readme.partition("| guarantee | shown by |")[2]
    rows = [row for row in table.partition("\n\n")[0].split("\n")[2:] if row]
    assert len(rows) == 6
    for row in rows:
        assert TEST_LINK.search(row), row


def test_every_guarantee_names_its_test() -> None:
    page = (DOCS / "reference" / "guarantees.md").read_text(encoding="utf-8")
    tables = re.findall(r"^\| promise \|.*?\n\n", page, re.MULTILINE | re.DOTALL)
    rows = [row for table in tables for row in table.strip().split("\n")[2:]]
    assert len(rows) > 40
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert TEST_NAME.search(cells[-1]), row
        assert all(cells), f"an empty cell: {row}"


@pytest.mark.parametrize("page", TEXTS, ids=IDS)
def test_no_page_names_a_machine_or_a_registry(page: Path) -> None:
    assert not PRIVATE.search(page.read_text(encoding="utf-8"))


def test_nothing_is_installed_by_the_package_s_name_while_it_is_on_no_index() -> None:
    # `how_to_install` has the one wording; pages say the same.
    sources = (REPOSITORY / "cqrs_celery").rglob("*.py")
    for text in (*TEXTS, *sources):
        assert "cqrs-celery[" not in text.read_text(encoding="utf-8"), text


def test_the_word_saga_stands_once_in_the_glossary() -> None:
    texts = {page: page.read_text(encoding="utf-8").lower() for page in TEXTS}
    assert {page.name: text.count("saga") for page, text in texts.items() if "saga" in text} == {
        "glossary.md": 1
    }


# ------------------------------------------------------------ what the pages name


def test_every_module_that_the_life_of_a_command_names_exists() -> None:
    page = (DOCS / "explanation" / "life-of-a-command.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/]+\.(?:py|lua))`", page))
    assert len(named) > 30
    assert {name for name in named if not (PACKAGE / name).exists()} == set()


def test_every_file_and_folder_that_contributing_names_exists() -> None:
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+(?:/|\.(?:py|lua|md|yml|toml)))`", page))
    assert len(named) > 80
    top_folders = ("tests", "docs", "benchmarks")
    files = ("CHANGELOG.md", "mkdocs.yml", "pyproject.toml", "cqrs_celery/")
    for name in named:
        is_of_repository = name in files or name.startswith(top_folders)
        assert ((REPOSITORY if is_of_repository else PACKAGE) / name).exists(), name


def test_every_command_that_contributing_names_exists() -> None:
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", page))
    assert {"lint", "test", "bench", "chaos", "mutants", "conformance"} <= used <= targets
    for module in re.findall(r"python -m ((?:tests|benchmarks)\.\w+)", page):
        path = REPOSITORY / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), module


def test_what_the_changes_in_contributing_change_is_still_there() -> None:
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    section = re.compile(r"^# (cqrs_celery/\S+)\n(.*?)(?=^# |^```)", re.MULTILINE | re.DOTALL)
    sections = section.findall(page)
    assert len(sections) == 5
    for file, diff in sections:
        source = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
        for line in re.findall(r"^[ -](.+)$", diff, re.MULTILINE):
            assert line in source, f"{file} has no line {line!r}"


def test_the_settings_page_has_exactly_the_settings_there_are() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(cqrs_\w+)` \|", page, re.MULTILINE)) == set(settings.NAMES)
    assert set(re.findall(r"\bcqrs_[a-z]\w*", page)) - {"cqrs_celery"} <= set(settings.NAMES)


def test_the_settings_page_has_exactly_the_options_of_the_transport() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    section = page.partition("## Transport options")[2]
    own, _, stock = section.partition("These come from Kombu's")
    defaults = re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]+) \|", own, re.MULTILINE)
    ours = set(Channel.from_transport_options) - set(kombus.Channel.from_transport_options)
    assert {name for name, _ in defaults} == ours
    for name, default in defaults:
        expected = getattr(Channel, name)
        assert (None if default == "None" else float(default)) == expected, name
    accepted = re.findall(r"^\| `(\w+)` \|(?:[^|]*\|){2}[^|]*from ([\d.]+) \|", own, re.MULTILINE)
    assert {name: float(least) for name, least in accepted} == {
        name: least for name, (least, _) in OPTIONS.items()
    }
    named = set(re.findall(r"`(\w+)`", stock))
    options = set(Channel.from_transport_options) - ours
    assert options - named == set(), "missing"
    assert named - options - ours <= {"True"}, "no such option"


def test_the_settings_page_names_every_task_option_that_a_handler_s_task_keeps() -> None:
    page = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    named = page.partition("refuses them as options of")[2].partition(". ")[0]
    # Attributes that Celery's own decorator takes for options, and that nobody sets there.
    internal = {"Request", "abstract", "app", "retry", "run"}
    assert set(re.findall(r"`(\w+)`", named)) == FIXED - internal


def test_the_errors_page_has_every_error_with_its_fields_in_the_order_of_the_tree() -> None:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    classes = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, Exception)]
    tree = re.findall(r"(\w+)$", page.partition("```text")[2].partition("```")[0], re.MULTILINE)
    sections = re.split(r"^#{2,4} ", page.partition("## CQRSError")[2], flags=re.MULTILINE)
    headings = ["CQRSError", *(section.partition("\n")[0] for section in sections[1:])]
    assert sorted(headings) == sorted(c.__name__ for c in classes)
    assert headings == tree
    for name, section in zip(headings, sections, strict=True):
        fields = inspect.get_annotations(getattr(errors, name))
        for field in fields:
            assert f"`{field}`" in section, f"{name} has the field {field}"


def test_the_tree_of_errors_is_the_one_in_the_modules_docstring() -> None:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    drawn = page.partition("```text\n")[2].partition("```")[0].rstrip()
    lines = (errors.__doc__ or "").split("\n\n")[1].splitlines()
    assert drawn == "\n".join(re.sub(r"(\w+) .*", r"\1", line) for line in lines)


def test_the_dead_letters_page_has_exactly_the_reasons_that_the_code_gives() -> None:
    page = (DOCS / "explanation" / "dead-letters.md").read_text(encoding="utf-8")
    table = page.partition("| reason | what was found |")[2].partition("\n\n")[0]
    given = r"""(?:"reason": ?|\._say\(|set_aside\(\w+, |with_reason\()"([a-z][a-z :]+)"""
    sources = sorted((REPOSITORY / "cqrs_celery").rglob("*.py"))
    found = {reason for path in sources for reason in re.findall(given, path.read_text())}
    assert len(found) > 10
    assert set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == found


def test_the_public_api_page_has_every_public_name() -> None:
    page = (DOCS / "reference" / "public-api.md").read_text(encoding="utf-8")
    for name in cqrs_celery.__all__:
        assert re.search(rf"[`@. ]{name}\b", page), name


def test_the_public_api_page_has_every_module_that_a_page_imports_from() -> None:
    listed = (DOCS / "reference" / "public-api.md").read_text(encoding="utf-8")
    listed = listed.partition("by its module:")[2].partition("\n\n")[0]
    used = re.compile(r"^(?:>>> )?from (cqrs_celery\.[\w.]+) import", re.MULTILINE)
    for page in PAGES:
        for module in used.findall(page.read_text(encoding="utf-8")):
            names = [module[: dot.start()] for dot in re.finditer(r"\.|$", module)]
            assert any(f"`{name}`" in listed for name in names), f"{page.name}: {module}"


def test_the_keys_page_has_every_key_and_every_command_of_the_scripts() -> None:
    page = (DOCS / "reference" / "redis-keys.md").read_text(encoding="utf-8")
    commands = set(page.partition('COMMANDS = """')[2].partition('"""')[0].split())
    scripts = sorted((REPOSITORY / "cqrs_celery").rglob("*.lua"))
    assert scripts
    for script in scripts:
        source = script.read_text(encoding="utf-8")
        for key in re.findall(r"C \.\. '([a-z_]+)", source):
            assert f"`cq:{key}" in page, f"{script.name} uses cq:{key}"
        for command in re.findall(r"\b[a-z_]*call(?:_with)?\('([A-Z]+)'", source):
            assert command.lower() in commands, f"{script.name} calls {command}"
