"""A whole number is an int that is no Boolean."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import pytest

from cqrs_celery.whole_numbers import is_whole


class Size(IntEnum):
    SMALL = 1


@pytest.mark.parametrize("value", [0, 1, -1, 2**40, Size.SMALL])
def test_an_int_is_one(value: Any) -> None:
    assert is_whole(value)


@pytest.mark.parametrize("value", [True, False, None, 1.0, float("inf"), "1", b"1", [1]])
def test_anything_else_is_none(value: Any) -> None:
    assert not is_whole(value)
    assert not is_whole(value, at_least=0)


def test_one_that_is_too_small_is_not_accepted() -> None:
    assert is_whole(3, at_least=3)
    assert not is_whole(2, at_least=3)
    assert is_whole(1, at_least=0.5)
