"""The loop's next turn is not missed, whatever Kombu's event loop had set out to wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from queue import Empty
from typing import Any

import pytest
from kombu.asynchronous.hub import Hub

from cqrs_celery.transport.poller import Poller


class Channel:
    """Be a channel with one exchange to make, a moment after the turn in which it was asked."""

    is_listening = False
    is_woken = False

    def maybe_refresh_binding_expiry(self) -> None:
        """Do nothing: nothing is bound."""

    def __init__(self) -> None:
        self.turned_at: list[float] = []
        self.due = 0.0

    def turn(self, *, is_loop: bool) -> int:
        self.turned_at.append(time.monotonic())
        if len(self.turned_at) == 1:
            self.due = time.monotonic() + 0.005
        return 0

    def due_at(self) -> float:
        return self.due


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub()
    yield hub
    hub.close()


def test_the_loop_waits_no_longer_than_until_what_a_turn_has_found_due(hub: Hub) -> None:
    # given an event loop that decides before each turn how long it will wait after it
    waits: list[float] = []
    poll = hub.poller.poll

    def noted(timeout: float) -> Any:
        events = poll(0)
        if not events:
            waits.append(timeout)
        return events

    hub.poller.poll = noted
    hub.call_later(60, lambda: None)
    poller, channel = Poller(), Channel()
    poller.add(channel)
    hub.on_tick.add(poller.on_poll_start)
    poller.use_hub(hub)
    # when a turn finds that the next exchange is due in five milliseconds
    loop = hub.create_loop()
    while not channel.turned_at or time.monotonic() < channel.due:
        next(loop)
    # then it waits for no more than that
    assert waits
    assert max(waits) <= 0.005


@pytest.mark.alone  # measures time
def test_the_loop_still_hears_of_a_settlement_after_something_has_drained_events(hub: Hub) -> None:
    # given an event loop, and Celery's mingle, which drains events before the loop turns
    poller, channel = Poller(), Channel()
    channel.due = float("inf")
    poller.on_poll_init(hub.poller)
    poller.add(channel)
    poller.use_hub(hub)
    with pytest.raises(Empty):
        poller.get(lambda *_: None, timeout=0.01)
    # when something is settled
    poller.turn_soon()
    # then the loop hears of it at once
    hub.call_later(60, lambda: None)
    began = time.monotonic()
    hub.run_once()
    assert time.monotonic() - began < 1.0
    poller.close()
