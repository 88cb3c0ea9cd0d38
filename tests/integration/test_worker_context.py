"""What is said of a request comes along through workers of each pool, from message to message."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from celery import chain, chord, group

from cqrs_celery.store.stream import StreamName
from tests import depot
from tests.depot import FillBox
from tests.integration.conftest import WorkerFactory
from tests.waiting import wait_until

USER = {"user_id": "u7", "tenant_id": "näht"}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads", "gevent"])
def test_everything_that_a_request_causes_carries_its_context(
    pool: str, redis_url: str, data: redis.Redis, worker_factory: WorkerFactory
) -> None:
    worker_factory(
        "from tests.depot import app",
        pool=pool,
        concurrency=2,
        arguments=("--without-mingle", "--without-gossip"),
        env={"DEPOT_URL": redis_url},
    )
    with depot.connected(redis_url) as cqrs:
        # given a user's request: a command whose subscription sends another, and signatures
        fill = cqrs.app.tasks["depot.fill_box"].si
        with cqrs.context(correlation_id="request-1", **USER):
            sent = [FillBox(id="one", count=100).delay()]
            sent.append(chain(*[fill(FillBox(id="chain", count=n)) for n in (1, 2, 3)])())
            several = group(fill(FillBox(id="group", count=n)) for n in (1, 2))
            sent.append(chord(several)(fill(FillBox(id="chord"))))
        # and another one's, at once
        with cqrs.context(correlation_id="request-2", user_id="u8"):
            sent.append(FillBox(id="other").delay())
        sent.append(FillBox(id="nobody's").delay())
        for result in sent:
            result.get(timeout=20)

        # when all is done
        def metadata_of(id: str) -> list[Any]:
            stream = StreamName("depot", "DepotBox", id)
            return [stored.event.metadata for stored in cqrs.store.read_stream(stream)]

        wait_until(lambda: metadata_of("one-overflow"), 10, "the second command")
        # then each event carries what its request said, to the end
        for name, count in [
            ("one", 1),
            ("one-overflow", 1),
            ("chain", 3),
            ("group", 2),
            ("chord", 1),
        ]:
            found = metadata_of(name)
            assert len(found) == count, name
            assert [(one.correlation_id, one.context) for one in found] == (
                [("request-1", USER)] * count
            ), name
        # and nothing of another's
        (other,), (nobody,) = metadata_of("other"), metadata_of("nobody's")
        assert (other.correlation_id, other.context) == ("request-2", {"user_id": "u8"})
        assert nobody.context == {}
        assert nobody.correlation_id == sent[-1].id
        # and the steps of a chain still say which was before
        causes = [one.causation_parent_id for one in metadata_of("chain")]
        assert causes[0] == ""
        assert causes[1:] == [one.causation_id for one in metadata_of("chain")[:2]]
