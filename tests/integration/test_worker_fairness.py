"""Plain tasks and batches share a worker in turn, however many of the others wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.starvation import starve_one
from tests.conftest import RedisFactory

FLOOD = 20_000


@pytest.mark.integration
@pytest.mark.parametrize("pool", ["solo", "prefork"])
@pytest.mark.parametrize(
    "is_plain_flooded", [True, False], ids=["plain tasks flood", "batches flood"]
)
def test_a_message_beside_a_flooded_queue_is_handled_before_half_of_the_flood(
    redis_factory: RedisFactory, tmp_path: Path, pool: str, is_plain_flooded: bool
) -> None:
    # given a worker of a flooded queue and of another one, which are a task's and a batch's
    node = redis_factory(appendonly=False)
    # when the other one gets a message, five times
    waits, least = starve_one(
        node, tmp_path, pool, is_plain_flooded=is_plain_flooded, rounds=5, seed="1", flood=FLOOD
    )
    # then it is handled while much of the flood waits; it is filled up again below a third
    assert len(waits) == 5
    assert least > FLOOD * 0.15
