"""The queue is right while scripts of the release before run on it too, and after."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cqrs_celery.queue.inspection import QueueInspector
from tests import old_release
from tests.chaos.queue_model import QUEUES, QueueModel
from tests.nodes import RedisNode
from tests.queues import PREFIX, counts_by_scan, counts_kept

STEPS = 3_000

#: What a process of the release before may do; the rest is done by this one.
BY_EITHER = {"publish", "publish_topic", "settle_and_take", "purge"}


class Either:
    """Do what the queue of either release does, at random."""

    def __init__(self, model: MixedModel, new: Any, old: Any) -> None:
        self._model, self._new, self._old = model, new, old

    def __getattr__(self, name: str) -> Any:
        is_old = name in BY_EITHER and self._model.has_old and self._model.random.random() < 0.5
        if is_old:
            self._model.seen[f"{name} by the release before"] += 1
        return getattr(self._old if is_old else self._new, name)


class MixedModel(QueueModel):
    """Drive the queue by both releases; the counts that are kept need not be right meanwhile."""

    def __init__(self, client: Any, seed: int, old: Any) -> None:
        self.has_old = True
        super().__init__(client, seed)
        # The release before does not know what a consumer was running: all it held counts.
        for consumer in self.consumers:
            consumer.slots = 0
        self.queue = Either(self, self.queue, old(client, prefix=PREFIX))  # type: ignore[assignment]
        self.see_old()

    def see_old(self) -> None:
        """Let the upkeep see a consumer of the release before."""
        until = QueueInspector(self.queue).now_ms() + 3_600_000
        self.client.set(self.queue.key("old_until"), until)

    def lose_old(self) -> None:
        """Let the last process of the release before end, and the upkeep's time for it pass."""
        self.has_old = False
        self.client.set(self.queue.key("old_until"), QueueInspector(self.queue).now_ms() - 1)
        for queue in QUEUES:
            while self.queue.upkeep.recount(queue, most=3) is None:
                pass

    def _new_consumer(self) -> Any:
        consumer = super()._new_consumer()
        consumer.slots = 0
        self._say_what_it_is(consumer)
        return consumer

    def recount(self) -> None:
        self.queue.upkeep.recount(self.random.choice(QUEUES), most=2)

    def check_counts(self, queue: str) -> None:
        if not self.has_old:
            super().check_counts(queue)

    def drain(self) -> None:
        """Go on without the release before, and with counts that are right, to the end."""
        wrong = [q for q in QUEUES if counts_kept(self.queue, q) != counts_by_scan(self.queue, q)]
        self.seen["queues with wrong counts"] += len(wrong)
        self.lose_old()
        for queue in QUEUES:
            self.check_counts(queue)
        super().drain()


@pytest.mark.parametrize("seed", [1, 2])
def test_both_releases_use_the_queue_at_random_and_the_counts_are_right_in_the_end(
    redis_node: RedisNode, redis_url: str, tmp_path: Path, seed: int
) -> None:
    # given the queue of the release before, beside this one's
    old = old_release.import_queue(old_release.extract(tmp_path))
    sys.stderr.write(f"seed {seed}\n")
    with redis_node.client() as client:
        model = MixedModel(client, seed, old)
        # when both are used at random, and then this one alone
        model.run(STEPS)
    # then nothing was lost, doubled or overtaken, and a queue counts right in between and after
    assert model.seen["settle_and_take by the release before"] > STEPS / 10
    assert model.seen["publish by the release before"] > STEPS / 10
    assert model.seen["queues with wrong counts"]
    assert not any(model.seen[what] for what in ("lost", "doubled", "out of order", "keys left"))
