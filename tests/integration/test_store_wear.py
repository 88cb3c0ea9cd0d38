"""A short form of the runs that break stores, queues and workers; docs/chaos.md has the long."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.wear import (
    wear_postgresql,
    wear_psycopg3,
    wear_sqlite,
    wear_workers_by_transactions,
    wear_workers_in_django,
    wear_workers_in_django_on_sqlite,
    wear_workers_on_psycopg3,
)

needs_pgbouncer = pytest.mark.skipif(
    shutil.which("pgbouncer") is None, reason="no pgbouncer on PATH"
)


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


@pytest.mark.parametrize(
    ("run", "seed"),
    [
        (wear_workers_on_psycopg3, 4),
        pytest.param(wear_workers_by_transactions, 5, marks=needs_pgbouncer),
        (wear_workers_in_django, 6),
        (wear_workers_in_django_on_sqlite, 7),
    ],
)
def test_whatever_happens_to_servers_and_workers_each_event_that_is_stored_is_handled(
    tmp_path: Path, run: Callable[..., dict[str, Any]], seed: int
) -> None:
    # given a store, a queue and workers, of which one after the other is broken
    rows = run(tmp_path, rounds=3, seed=seed)
    # then everything stored is handled, and nothing twice without a reason
    assert rows["rounds"] == 3
    assert rows["commits"] > 10
    assert rows["events in the end"] > 10
