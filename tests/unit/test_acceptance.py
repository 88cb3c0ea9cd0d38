"""What the predecessor's users rely on is shown by tests that say so."""

from __future__ import annotations

import pytest

from tests.acceptance import NUMBERS, UNNUMBERED, every_test, numbers_in, shown


def test_every_behaviour_that_users_rely_on_has_a_test() -> None:
    tests = shown()
    assert [number for number in NUMBERS if number not in tests] == []


def test_what_has_no_number_has_a_test_too() -> None:
    there = {name for name, _ in every_test()}
    assert [name for names in UNNUMBERED.values() for name in names if name not in there] == []


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ACCEPTANCE 76.", [76]),
        ("What it does. ACCEPTANCE 46-48, 50 and 52, sync and async.", [46, 47, 48, 50, 52]),
        ("ACCEPTANCE 84 and 86: 4,000 failures, and no wait overflows.", [84, 86]),
        ("15, 16: another version is refused.", [15, 16]),
        ("It takes 15: no more.", []),
    ],
)
def test_numbers_are_read_as_they_are_written(text: str, numbers: list[int]) -> None:
    assert list(numbers_in(text)) == numbers
