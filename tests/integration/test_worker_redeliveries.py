"""A worker gets its commands again and again, and each has its effect once, on every store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.redeliveries import redeliver_commands
from tests.conftest import require_server

SEED = 20261124


@pytest.mark.parametrize("name", ["broker", "memory", "sqlite", "postgresql"])
def test_every_command_has_its_effect_once_however_often_it_is_delivered(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    # given commands, some sent twice; when they are rejected and retried after their commit, and
    # their processes killed, then every balance is what plain arithmetic says, and every sending
    # was told of the first outcome
    require_server()
    stores = {"broker": "broker", "memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/till.db"}
    store = stores.get(name) or str(request.getfixturevalue("postgres_url"))
    found = redeliver_commands(tmp_path, rounds=300, seed=SEED, store=store, kills=name != "memory")
    assert found["redeliveries"] >= 300
    assert found["effects"] == found["commands"]
    assert found["rejected after their commit"] > 100
