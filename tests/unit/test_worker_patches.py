"""What Celery's worker is taught about a server that is away: find it soon, wait for nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery.worker.consumer.consumer import Consumer
from celery.worker.heartbeat import Heart
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.utils import functional

import cqrs_celery.transport  # noqa: F401
from cqrs_celery.transport.celery import worker_patches


class Away:
    """A server that is away until a second of a clock that only sleep moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, until: float) -> None:
        self.now = 0.0
        self.until = until
        self.waits: list[float] = []
        self.connection = Connection("reliable-redis://127.0.0.1:1/0")
        # What Celery calls is there once a transport has been made.
        assert self.connection.transport
        monkeypatch.setattr(functional, "sleep", self._sleep)
        monkeypatch.setattr(worker_patches, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(self.connection, "_establish_connection", self._establish)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds

    def _establish(self) -> Any:
        if self.now < self.until:
            raise redis.ConnectionError("away")
        return self.connection.transport

    def connect(self, *, max_retries: int | None) -> Any:
        """Connect as Celery's worker does."""
        ensure_connected: Any = worker_patches._trying_often(
            lambda consumer, connection: connection.ensure_connection(
                lambda error, interval: self.waits.append(interval), max_retries, callback=None
            )
        )
        return ensure_connected(None, self.connection)


def test_a_server_that_comes_back_while_celery_waits_is_found_within_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a server that is away until the middle of one of Celery's longer waits
    away = Away(monkeypatch, until=115)
    # when a worker connects
    connection = away.connect(max_retries=None)
    # then it has
    assert connection is away.connection
    assert connection.connected
    assert 115 <= away.now < 117
    # and Celery's own waits, which its log tells, were the same as ever
    assert away.waits == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]
    assert "ensure_connection" not in vars(connection)


def test_a_server_that_stays_away_is_given_up_when_celery_gives_it_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a server that never comes back, and a limit of three retries
    away = Away(monkeypatch, until=10_000)
    # when a worker connects, then it gives up after its three waits
    with pytest.raises(OperationalError):
        away.connect(max_retries=3)
    assert away.now == 2 + 4 + 6


def test_the_worker_of_this_process_tries_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    Away(monkeypatch, until=0)
    assert hasattr(Consumer.ensure_connected, "__wrapped__")


@pytest.mark.parametrize(
    ("url", "is_repeated"),
    [("reliable-redis://127.0.0.1:1/0", False), ("redis://127.0.0.1:1/0", True)],
)
def test_a_heartbeat_that_can_not_be_sent_does_not_hold_up_the_loop(
    monkeypatch: pytest.MonkeyPatch, url: str, is_repeated: bool
) -> None:
    Away(monkeypatch, until=0)
    # given the heart of a worker
    sent: list[dict[str, Any]] = []
    eventer = SimpleNamespace(
        enabled=True,
        on_enabled=set(),
        on_disabled=set(),
        connection=Connection(url),
        send=lambda event, **fields: sent.append(fields),
    )
    # when it beats, then it does so once, where the transport is ours
    Heart(None, eventer)._send("worker-heartbeat")
    assert sent[0]["retry"] is is_repeated
