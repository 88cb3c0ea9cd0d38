"""A commit in a SQL store wakes the relay, and never waits for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cqrs_celery import CQRS
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.errors import StoreUnavailable
from cqrs_celery.store.events import Lease
from cqrs_celery.workers.relay import Relay
from tests import yard
from tests.nodes import RedisNode
from tests.proxy import Proxy
from tests.waiting import wait_until

#: Seconds that the wake-ups of ten commits in a row may cost in all.
TEN_WAKE_UPS_S = 0.25


class Shop:
    """An application on a SQLite store, whose commits' wake-ups are timed."""

    def __init__(self, broker: str, folder: Path) -> None:
        self.app = yard.make_app(broker, f"sqlite:///{folder / 'events.db'}")
        self.cqrs: CQRS = self.app.cqrs
        store = self.cqrs.store
        assert isinstance(store, SqlEventStore)
        self.store = store
        create_schema(store)
        assert self.cqrs.relay is not None
        self.parts = self.cqrs.relay
        wake = store.on_commit
        assert wake is not None

        def timed() -> None:
            began = time.monotonic()
            wake()
            self.waking_s.append(time.monotonic() - began)

        self.waking_s: list[float] = []
        store.on_commit = timed

    def commit(self, count: int) -> float:
        """Execute so many commands; returns the seconds that their wake-ups took of them."""
        self.waking_s.clear()
        for n in range(count):
            self.cqrs.execute(yard.GrowHeap(id=str(n)))
        assert len(self.waking_s) == count
        return sum(self.waking_s)

    def is_all_relayed(self) -> bool:
        return self.parts.destination.position() == self.store.outbox.last_position()


@pytest.fixture
def make_shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Shop]]:
    monkeypatch.setenv("YARD_OUT", str(tmp_path / "handled"))
    monkeypatch.setenv("YARD_STOCK", "")
    shops: list[Shop] = []

    def make(broker: str) -> Shop:
        shops.append(Shop(broker, tmp_path))
        return shops[-1]

    yield make
    for shop in shops:
        shop.store.close()
        shop.app.close()


@pytest.mark.parametrize("is_warm", [True, False], ids=["connected", "not yet connected"])
@pytest.mark.parametrize("way", ["frozen", "refused", "silent"])
def test_a_commit_does_not_wait_for_a_redis_that_is_away_and_delivery_resumes_when_it_is_back(
    redis_factory: Callable[..., RedisNode],
    make_shop: Callable[[str], Shop],
    way: str,
    is_warm: bool,
) -> None:
    node = redis_factory()
    with Proxy(node.port) as proxy:
        # given an application whose Redis goes away, before or after its first wake-up
        shop = make_shop(proxy.url() if way == "silent" else node.url)
        if is_warm:
            with node.client() as client:
                shop.commit(1)
                wait_until(lambda: client.keys("*relay-wake*"), message="the first wake-up")
        {"frozen": node.freeze, "refused": node.kill, "silent": proxy.silence}[way]()
        # when it commits
        waking_s = shop.commit(10)
        # then what only wakes costs next to nothing
        assert waking_s <= TEN_WAKE_UPS_S
        # and once Redis is back, everything is delivered
        {"frozen": node.thaw, "refused": node.start, "silent": proxy.accept}[way]()
        relay = Relay(shop.parts)
        thread = threading.Thread(target=relay.run)
        thread.start()
        try:
            wait_until(shop.is_all_relayed, 30, "the relay")
            assert shop.commit(10) <= TEN_WAKE_UPS_S
            wait_until(shop.is_all_relayed, 30, "the relay")
        finally:
            relay.stop()
            thread.join(30)


def test_a_lease_whose_redis_is_frozen_is_unknown_after_seconds_and_not_taken_for_held(
    redis_factory: Callable[..., RedisNode], make_shop: Callable[[str], Shop]
) -> None:
    # given an application that has looked up a lease
    node = redis_factory()
    shop = make_shop(node.url)
    assert not shop.parts.destination.is_held(Lease("worker", 1, 1))
    # when its Redis is frozen
    node.freeze()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="look up a lease"):
        shop.parts.destination.is_held(Lease("worker", 1, 1))
    # then that is said soon: a transaction is open meanwhile, and others may wait for its rows
    assert time.monotonic() - began < 15
