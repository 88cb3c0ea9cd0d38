"""The places that `tests.mutants` changes are there: one that changes nothing shows nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cqrs_celery import messages
from tests.mutants import MUTANTS, TESTS, Mutant, mutated

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
