"""Whatever a message class holds comes back by every way, or is refused where the mistake is.

`python -m tests.values` is the long form.
"""

from __future__ import annotations

from tests import values


def test_any_value_of_any_class_comes_back_equal_by_every_way_or_is_refused() -> None:
    # when
    counts = values.run(150)
    # then much was accepted, and much refused
    assert counts["classes accepted"] >= 50
    assert counts["classes refused when made"] >= 10
    assert counts["values"] >= 300
    assert counts["records accepted"] >= 150
    assert counts["records refused"] >= 50
    assert counts["comparisons"] >= 2_000
    assert counts["results"] >= 100
