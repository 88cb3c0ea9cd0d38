"""The places that mutants change are there: one that changes nothing shows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqrs_celery import messages
from tests import script_mutants
from tests.mutants import MUTANTS, TESTS, Mutant, mutated
from tests.nodes import REPOSITORY

SOURCES = Path(messages.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.old.split("\n")[0])
def test_a_mutant_changes_one_place_to_code_that_can_be_read(mutant: Mutant) -> None:
    source = (SOURCES / f"{mutant.module}.py").read_text(encoding="utf-8")
    changed = mutated(mutant, source)
    assert changed != source
    compile(changed, mutant.module, "exec")


def test_the_serializer_and_the_registry_are_broken_in_many_places() -> None:
    assert len(MUTANTS) >= 60
    assert {mutant.module for mutant in MUTANTS} == set(TESTS)
    for module, least in (("serializer", 10), ("registry", 10), ("codec", 10)):
        assert sum(mutant.module == module for mutant in MUTANTS) >= least


@pytest.mark.parametrize(
    "mutant", script_mutants.MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.old.strip()}"
)
def test_a_mutant_of_a_script_changes_one_place(mutant: Mutant) -> None:
    source = script_mutants.source_of(mutant, REPOSITORY).read_text(encoding="utf-8")
    assert mutated(mutant, source) != source


def test_the_scripts_are_broken_in_many_places() -> None:
    assert len(script_mutants.MUTANTS) >= 40
    assert len(set(script_mutants.MUTANTS)) == len(script_mutants.MUTANTS)
    scripts = {mutant.module for mutant in script_mutants.MUTANTS}
    assert {"settle_and_take", "publish", "recover", "beat", "purge", "redrive"} <= scripts


def test_the_tests_of_the_scripts_are_there() -> None:
    for name in script_mutants.TESTS:
        assert (REPOSITORY / "tests" / "integration" / f"test_queue_{name}.py").exists(), name
