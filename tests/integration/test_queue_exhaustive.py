"""Every interleaving of a few operations on a small queue, against a model, and longer ones."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path

import pytest

from tests.chaos.small.levels import LevelWalk
from tests.chaos.small.model import Rules
from tests.chaos.small.operations import Operation
from tests.chaos.small.server import SmallServer
from tests.chaos.small.walk import Walk
from tests.nodes import RedisNode

#: Operations of which every interleaving is tried, and the most of a sample of longer ones.
WHOLE = 4
DEPTH = 7
#: States of each level from which the sample goes on.
SAMPLE = 100

#: Each is tried by some interleaving of so few operations.
KINDS = {
    "publish", "take", "settle", "settle twice", "finish and take", "requeue all", "beat",
    "end lease", "recover", "leave", "join", "due", "redrive", "discard", "purge",
    "what counts nothing",
}  # fmt: skip


@pytest.mark.parametrize(
    "rules", [Rules(blocks=True, slots=0), Rules(blocks=False, slots=1)], ids=str
)
def test_every_interleaving_of_a_few_operations_does_what_the_model_says(
    redis_node: RedisNode, redis_url: str, rules: Rules
) -> None:
    # given an empty server, and a seed that is shown if the test fails
    seed = secrets.randbelow(10**6)
    sys.stderr.write(f"again: python -m tests.chaos.small --sample {SAMPLE} --seed {seed}\n")
    with redis_node.client() as client:
        walk = Walk(SmallServer(client), rules)
        # when every interleaving of a few operations is tried, and some longer ones
        walk.run(DEPTH, whole=WHOLE, most=SAMPLE, seed=seed)
    # then the model agreed with all that the server did, and nothing was left out
    assert set(walk.kinds) >= KINDS
    assert walk.states[3] > 300
    assert walk.transitions[WHOLE] > 5_000
    assert walk.transitions[DEPTH] > SAMPLE * 10


def test_what_two_dead_consumers_held_comes_back_in_its_order_in_one_turn(
    redis_node: RedisNode, redis_url: str
) -> None:
    # given two consumers that died, of which the first one held what is older
    path: list[Operation] = [
        ("publish", "", False), ("publish", "X", False),
        ("take", "A", 1, 1), ("end lease", "A"), ("take", "B", 1, 1), ("end lease", "B"),
    ]  # fmt: skip
    with redis_node.client() as client:
        # when both are recovered in one turn
        found = Walk(SmallServer(client), Rules()).follow([*path, ("recover",)])
    # then what is older stands at the head again, whoever held it
    assert list(found.model.line) == [1, "X"]


class Ended(Exception):
    """The run was ended from outside."""


def test_a_walk_that_was_ended_goes_on_to_the_same_end(
    redis_node: RedisNode, redis_url: str, tmp_path: Path
) -> None:
    # given a walk that nothing ends
    rules, depth = Rules(), 3
    with redis_node.client() as client:
        server = SmallServer(client)
        whole = LevelWalk(server, rules, tmp_path / "whole", depth).run()
    # when another one is ended again and again, each time after a few states, some not noted
    endings = 0
    while True:
        left = 6

        def tell(_: str) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Ended

        with redis_node.client() as client:
            ended = LevelWalk(SmallServer(client), rules, tmp_path / "ended", depth, note_s=0)
            try:
                found = ended.run(tell)
            except Ended:
                endings += 1
            else:
                break
    # then it has tried the same
    assert endings > 5
    assert (found.states, found.transitions) == (whole.states, whole.transitions)
