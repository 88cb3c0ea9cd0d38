"""Who commits, relays or keeps data is killed, and nothing is lost; the long runs are a chaos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.kills import kill_committers, kill_postgres, kill_redis, kill_relays
from tests.conftest import require_postgres, require_server

SEED = 20261125

Run = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("run", "options"),
    [
        (kill_committers, {"rounds": 8}),
        (kill_relays, {"rounds": 3}),
        (kill_redis, {"rounds": 3, "pause_s": 0.2}),
        (kill_postgres, {"rounds": 3, "pause_s": 0.1}),
    ],
)
def test_each_committed_event_is_handled_by_all_whatever_is_killed_and_no_other(
    tmp_path: Path, run: Run, options: dict[str, Any]
) -> None:
    # given commits in PostgreSQL, and three subscriptions; when those who commit, the active relay,
    # Redis (which comes back with its data, without the last of them, without any) or PostgreSQL
    # (whole, its postmaster, a backend) are killed, then the auditor has nothing to complain of
    require_server()
    require_postgres()
    seen = run(tmp_path, seed=SEED, **options)
    assert seen["events"] > 10
    assert seen["lost"] == seen["handled without being committed"] == 0
