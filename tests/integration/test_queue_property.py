"""Random use of the queue by many consumers that die, freeze and leave, against a model of it."""

from __future__ import annotations

import secrets
import sys

import pytest

from tests.chaos.queue_model import QueueModel
from tests.nodes import RedisNode

STEPS = 5_000


@pytest.mark.parametrize("seed", [1, 2, 3, None])
def test_no_message_is_lost_doubled_or_overtaken(
    redis_node: RedisNode, redis_url: str, seed: int | None
) -> None:
    # given an empty server, and a seed: a new one each time for None, shown if the test fails
    seed = secrets.randbelow(10**6) if seed is None else seed
    sys.stderr.write(f"again: python -m tests.chaos --steps {STEPS} --seed {seed}\n")
    with redis_node.client() as client:
        model = QueueModel(client, seed)
        # when it is used at random
        model.run(STEPS)
    # then the model agreed with every answer, all work came to its end, and nothing is left of it
    assert model.seen["steps"] == STEPS
    assert model.settled
    assert not any(model.seen[what] for what in ("lost", "doubled", "out of order", "keys left"))
