"""The transport behind a black hole: nothing is refused or closed, and nothing comes through."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Consumer, Exchange, Queue
from kombu.exceptions import OperationalError

from tests.chaos.black_hole import black_hole
from tests.chaos.lab import ALONE, Lab
from tests.proxy import Proxy
from tests.waiting import wait_until


def test_a_worker_goes_on_within_five_seconds_of_a_black_holes_end(tmp_path: Path) -> None:
    # given busy workers, when their connections swallow everything for longer than any timeout,
    # then each runs a new task and answers a ping within 5 seconds of the end, and none is lost
    rows = black_hole(
        tmp_path,
        rounds=1,
        seed=0,
        hole_s=10,
        watch_s=15,
        pools=("solo", "prefork"),
        transports=("ours",),
        arguments=ALONE,
        lease_s=3,
    )
    assert all("not done 0" in row for name, row in rows.items() if name.startswith("ours")), rows


@pytest.mark.parametrize("pool", ["solo", "gevent"])
def test_a_pub_sub_connection_that_has_died_without_a_word_is_replaced(
    tmp_path: Path, pool: str
) -> None:
    with Lab(tmp_path, health_check_interval=1) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given an idle worker that answers a ping
            worker = lab.worker(url=proxy.url(), pool=pool)
            app = lab.app()
            wait_until(lambda: app.control.ping([worker.hostname], timeout=0.5), 10, "an answer")
            # when a firewall forgets those of its connections that listen
            lost = proxy.lose_connections(with_command=b"PSUBSCRIBE")
            lost += proxy.lose_connections(with_command=b"SUBSCRIBE")
            assert lost >= 2
            assert not app.control.ping([worker.hostname], timeout=1.0)
            # then it answers again, and has never lost the others
            wait_until(lambda: app.control.ping([worker.hostname], timeout=0.5), 20, "an answer")
            assert "Connection to broker lost" not in worker.logs()


def test_a_pub_sub_connection_on_which_redis_py_misses_answers_is_replaced(redis_url: str) -> None:
    received: list[object] = []
    exchange = Exchange("news", type="fanout")
    with Connection(redis_url.replace("redis", "reliable-redis", 1)) as connection:
        channel: Any = connection.channel()
        queue = Queue("news", exchange)
        with Consumer(channel, [queue], on_message=lambda m: received.append(m.payload)):
            # given a consumer that listens, and pings of redis-py that nobody answered
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            client = channel.subclient
            before = client.connection._sock
            assert before is not None
            client.health_check_response_counter = 2
            # when Kombu's loop looks at it
            connection.transport.cycle.maybe_check_subclient_health()
            # then it connects anew, and hears what is published then
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)
            assert client.connection._sock not in (None, before)
            connection.Producer(channel).publish({"number": 1}, exchange=exchange, routing_key="")
            while not received:
                connection.drain_events(timeout=5)
    assert received == [{"number": 1}]


def test_a_publisher_whose_idle_connections_have_died_goes_on_after_one_wait(
    tmp_path: Path,
) -> None:
    with Lab(tmp_path) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given a publisher that has published, and whose connections are forgotten then
            lab.send(1, url=proxy.url())
            assert proxy.lose_connections() > 0
            # when it publishes again, then it takes no longer than one answer is waited for
            began_at = time.monotonic()
            lab.send(2, url=proxy.url())
            assert time.monotonic() - began_at < 8
            lab.send(3, url=proxy.url())
            assert lab.count().ready == 3


@pytest.mark.parametrize("scheme", ["reliable-redis", "reliable-rediss", "reliable-sentinel"])
def test_an_attempt_to_connect_into_a_black_hole_is_given_up_in_two_seconds(
    tmp_path: Path, scheme: str
) -> None:
    with Lab(tmp_path) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            # given a server, or a Sentinel, that takes connections and says nothing
            proxy.begin_hole(is_losing=True)
            # when one connects to it, then it is given up, so that the next attempt can be made
            assert 1 < _attempt_s(f"{scheme}://127.0.0.1:{proxy.port}/0") < 4


def test_an_attempt_to_connect_where_nobody_answers_is_given_up_in_two_seconds() -> None:
    # given a port whose line of connections is full: Linux drops what comes then, as a firewall
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            other = stack.enter_context(socket.socket())
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
        # when one connects to it, then it is given up, so that the next attempt can be made
        port = listener.getsockname()[1]
        assert 1 < _attempt_s(f"reliable-redis://127.0.0.1:{port}/0") < 4


def test_attempts_to_connect_that_fail_leave_no_channel_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with Connection(f"reliable-redis://127.0.0.1:{port}/0") as connection:
        for _ in range(3):
            with pytest.raises(OperationalError):
                connection.ensure_connection(max_retries=0)
        assert not connection.transport._used_channel_ids


def test_a_sentinel_is_waited_for_as_long_as_its_own_settings_say(tmp_path: Path) -> None:
    with Lab(tmp_path) as lab:
        assert lab.node is not None
        with Proxy(lab.node.port) as proxy:
            proxy.begin_hole(is_losing=True)
            url = f"reliable-sentinel://127.0.0.1:{proxy.port}/0"
            bounds = {"socket_timeout": 0.2, "socket_connect_timeout": 0.2}
            assert _attempt_s(url, sentinel_kwargs=bounds) < 1


def _attempt_s(url: str, **options: object) -> float:
    """Return how many seconds one attempt to connect takes until it fails."""
    began_at = time.monotonic()
    with (
        Connection(url, transport_options={"master_name": "shop", **options}) as connection,
        pytest.raises(OperationalError),
    ):
        connection.ensure_connection(max_retries=0)
    return time.monotonic() - began_at
