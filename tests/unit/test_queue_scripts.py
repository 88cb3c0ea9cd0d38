"""Scripts that change a sequence keep its queue's counts, and none needs a right nobody grants."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes import REPOSITORY

FOLDERS = ("cqrs_celery/queue/scripts", "cqrs_celery/backends/redis/scripts")

#: What changes a sequence's list or state, by itself or in a piece that is included.
CHANGES = re.compile(
    r"'H(SET|SETNX|DEL)', (C \.\. 'seqs:'|seqs)"
    r"|'[LR]PUSH', (seq_key|key)|'[LR]POP', (seq_key|key)|'LREM', (seq_key|key)|'LTRIM'"
    r"|\b(free_sequence|enqueue|fanout|promote|try_again|let_go)\("
)


def scripts() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from sorted((REPOSITORY / folder).glob("*.lua"))


def code_of(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not line.strip().startswith("--"))


@pytest.mark.parametrize(
    "path", [path for path in scripts() if not path.name.startswith("_")], ids=lambda p: p.stem
)
def test_a_script_saves_counts_exactly_where_it_changes_sequences(path: Path) -> None:
    code = code_of(path)

    assert ("save_counts()" in code) == bool(CHANGES.search(code))


def test_the_scripts_that_change_sequences_are_these() -> None:
    found = {path.stem for path in scripts() if CHANGES.search(code_of(path))}

    assert {one for one in found if not one.startswith("_")} == {
        "append", "discard", "from_stock", "publish", "publish_topic", "purge", "recover",
        "redrive", "redrive_due", "relay", "settle_and_take", "to_stock",
    }  # fmt: skip


def test_the_page_on_keys_grants_every_command_that_a_script_calls() -> None:
    page = (REPOSITORY / "docs/reference/redis-keys.md").read_text(encoding="utf-8")
    (granted,) = re.findall(r'COMMANDS = """\n(.*?)"""', page, re.DOTALL)
    calls = re.compile(r"\bp?call(?:_with)?\((?:at_head and )?'([A-Z]+)'(?: or '([A-Z]+)')?")
    names = {name for path in scripts() for pair in calls.findall(code_of(path)) for name in pair}
    found = {name.lower() for name in names if name}

    assert len(found) > 40
    assert found <= set(granted.split())
