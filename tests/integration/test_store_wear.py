"""A short form of the runs that break stores, queues and relays; docs/chaos.md has the long."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.wear import wear_postgresql, wear_psycopg3, wear_sqlite


@pytest.mark.parametrize(
    ("run", "seed"), [(wear_postgresql, 1), (wear_psycopg3, 2), (wear_sqlite, 3)]
)
def test_whatever_happens_to_the_servers_each_event_that_is_stored_is_given(
    tmp_path: Path, run: Callable[..., dict[str, Any]], seed: int
) -> None:
    # given a store, a queue and relays, of which one after the other is broken
    rows = run(tmp_path, rounds=4, seed=seed)
    # then everything stored is given, and nothing twice that need not be
    assert rows["rounds"] == 4
    assert rows["commits"] > 10
    assert rows["events in the end"] > 10
