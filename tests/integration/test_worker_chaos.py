"""Subscriptions whose workers are killed and frozen keep every promise; the long run is a chaos."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.subscriptions import disturb_subscriptions
from tests.conftest import require_server

SEED = 20261125


def test_killed_and_frozen_workers_lose_nothing_and_keep_every_sequence_in_order(
    tmp_path: Path,
) -> None:
    # given 600 events and handlers that fail at random, or always; when workers on two hosts are
    # killed and frozen, then the witness has nothing to complain of
    require_server()
    seen = disturb_subscriptions(
        tmp_path, rounds=600, seed=SEED, every_s=1.2, rate=120, least=5, slow="4:0.3"
    )
    assert seen["events"] == 600
    assert seen["lost"] == seen["out of order"] == 0
    # and all of it has happened
    assert seen["retried in place"] > 0
    assert seen["dead letters tried again"] > 0
    assert seen["blocked sequences"] > 0
