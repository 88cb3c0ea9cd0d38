"""A real worker runs commands and subscriptions, in order, and says under readable names what."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import chain, chord, group

from cqrs_celery import CQRS
from cqrs_celery.errors import UnwritableMessage
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.store.stream import StreamName
from tests import depot
from tests.conftest import require_server
from tests.depot import EmptyBox, FillBox, RefuseBox, Ring
from tests.integration.conftest import WorkerFactory
from tests.nodes import REPOSITORY, ProcessNode, RedisNode, WorkerNode, free_port
from tests.queues import in_flight
from tests.waiting import wait_until

#: Saves the second in which a starting worker looks for others.
ALONE = ("--without-mingle", "--without-gossip")

APPLICATION = "from tests.depot import app"

#: Celery's own default queue, the application's commands', and those of two subscriptions.
QUEUES = ["celery", "depot.commands", "depot.order_more_boxes", "depot.shelf"]

TASKS = [
    "cqrs_celery.take_snapshot",
    "depot.empty_box",
    "depot.fill_box",
    "depot.fill_box_slowly",
    "depot.fill_box_too_slowly",
    "depot.kill_worker",
    "depot.order_more_boxes",
    "depot.refuse_box",
    "depot.ring",
    "depot.shelf.clear_shelf",
    "depot.shelf.shelve",
]


class FlowerNode(ProcessNode):
    """Flower, watching the workers of the depot."""

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__("flower", directory)
        self.port = free_port()
        self._url = url

    @property
    def id(self) -> str:
        return f"flower-{self.port}"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "celery", "-A", "tests.depot:app", "flower"]
        return [*command, "--address=127.0.0.1", f"--port={self.port}", "--inspect_timeout=1000"]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "DEPOT_URL": self._url,
            "FLOWER_UNAUTHENTICATED_API": "true",
        }

    def get(self, path: str) -> str:
        """Return a page."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as page:
            text: str = page.read().decode()
            return text

    def is_ready(self) -> bool:
        try:
            return bool(self.get("/healthcheck"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisNode]:
    """Run a server for the module's workers."""
    require_server()
    node = RedisNode(tmp_path_factory.mktemp("redis"))
    try:
        node.start()
        yield node
    finally:
        node.teardown()


@pytest.fixture(scope="module")
def worker(server: RedisNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerNode]:
    """Run a worker of two processes, which sends events."""
    node = WorkerNode(
        tmp_path_factory.mktemp("worker"), "tests.depot", name="depot", concurrency=2,
        arguments=[*ALONE, "-E"], env={"DEPOT_URL": server.url},
    )  # fmt: skip
    try:
        node.start()
        node.wait_ready()
        yield node
    finally:
        node.teardown()


@pytest.fixture
def cqrs(server: RedisNode, worker: WorkerNode) -> Iterator[CQRS]:
    """Give a client of the depot whose worker runs."""
    with depot.connected(server.url) as cqrs:
        yield cqrs


@pytest.fixture
def data(server: RedisNode) -> Iterator[redis.Redis]:
    """Give a client of the depot's server."""
    with server.client() as client:
        yield client


def counts(cqrs: CQRS, id: str) -> list[int]:
    """Return what a box was filled with, oldest first."""
    stream = StreamName("depot", "DepotBox", id)
    return [json.loads(stored.event.data)["count"] for stored in cqrs.store.read_stream(stream)]


def fill_in_turns(cqrs: CQRS, ids: list[str], times: int) -> list[Any]:
    """Fill every box with 1, 2, …, by one command each; returns the results."""
    return [
        cqrs.send_command(FillBox(id=name, count=n)) for n in range(1, times + 1) for name in ids
    ]


def assert_handled_in_order(cqrs: CQRS, data: redis.Redis, ids: list[str], times: int) -> None:
    wanted = list(range(1, times + 1))
    wait_until(
        lambda: all(len(depot.seen(data, "shelf", name)) >= times for name in ids), 20, "the shelf"
    )
    assert {name: depot.seen(data, "shelf", name) for name in ids} == dict.fromkeys(ids, wanted)
    assert {name: counts(cqrs, name) for name in ids} == dict.fromkeys(ids, wanted)
    wait_until(lambda: not in_flight(data), 5, "nothing to be in flight")


def test_commands_to_one_aggregate_are_handled_in_order_by_two_processes(
    cqrs: CQRS, data: redis.Redis
) -> None:
    # given commands to four boxes, one after the other, many at a time
    ids = ["one", "two", "three", "four"]
    results = fill_in_turns(cqrs, ids, 50)
    # when all are done
    values = [result.get(timeout=30) for result in results]
    # then each box's were handled in the order of sending, and its events too, and nothing is
    # left in flight (73)
    assert [value["value"] for value in values[-4:]] == [sum(range(1, 51))] * 4
    assert {value["is_repeated"] for value in values} == {False}
    assert_handled_in_order(cqrs, data, ids, 50)


def test_a_solo_worker_handles_in_order_too(redis_url: str, worker_factory: WorkerFactory) -> None:
    # given a solo worker, and what was sent before it came
    cqrs = depot.client(redis_url)
    results = fill_in_turns(cqrs, ["one", "two"], 50)
    worker_factory(APPLICATION, pool="solo", arguments=ALONE, env={"DEPOT_URL": redis_url})
    # when all are done, then everything was handled in order
    for result in results:
        result.get(timeout=30)
    with redis.Redis.from_url(redis_url) as data:
        assert_handled_in_order(cqrs, data, ["one", "two"], 50)


def test_results_carry_outcome_and_position_and_exceptions_are_failures(
    cqrs: CQRS, data: redis.Redis
) -> None:
    # given a command that is refused, between two others to its box
    first = cqrs.send_command(FillBox(id="results", count=3))
    refused = cqrs.send_command(RefuseBox(id="results"))
    second = cqrs.send_command(FillBox(id="results", count=4))
    # then its exception is its outcome, it has committed nothing, and the next one goes on
    assert first.get(timeout=10)["value"] == 3
    with pytest.raises(ValueError, match="the box results is not ours"):
        refused.get(timeout=10)
    assert refused.state == "FAILURE"
    result = second.get(timeout=10)
    assert result["value"] == 7
    assert cqrs.store.read_all(after_position=result["position"] - 1, limit=1)[0].version == 2
    # and it is no dead letter
    assert not list(ReliableQueue(data).letters.all("depot.commands"))


def test_an_event_that_can_not_be_written_is_the_commands_outcome_and_no_dead_letter(
    cqrs: CQRS, data: redis.Redis
) -> None:
    # given a command whose handler records a text as a number, and the next one
    refused = cqrs.send_command(RefuseBox(id="unwritable"))
    after = cqrs.send_command(FillBox(id="unwritable", count=4))
    # then it has failed, committed nothing, and is done
    with pytest.raises(UnwritableMessage, match=r"depot\.box_filled.*\$\.count"):
        refused.get(timeout=10)
    after.get(timeout=10)
    assert counts(cqrs, "unwritable") == [4]
    assert not list(ReliableQueue(data).letters.all("depot.commands"))


def test_the_trace_flows_through_a_worker(cqrs: CQRS, data: redis.Redis) -> None:
    # given a command whose event makes a subscriber send another one
    cqrs.send_command(FillBox(id="traced", count=100), task_id="the-beginning").get(timeout=10)
    # when that has had its event
    stream = StreamName("depot", "DepotBox", "traced-overflow")
    (overflow,) = wait_until(lambda: cqrs.store.read_stream(stream), 10, "the overflow")
    # then both carry the first command's id, and each event its own command's
    (filled,) = cqrs.store.read_stream(StreamName("depot", "DepotBox", "traced"))
    assert filled.event.metadata.correlation_id == "the-beginning"
    assert filled.event.metadata.causation_id == "the-beginning"
    assert overflow.event.metadata.correlation_id == "the-beginning"
    assert overflow.event.metadata.causation_id not in ("", "the-beginning")
    # and the second command's event says which event caused that command
    assert filled.event.metadata.causation_parent_id == ""
    assert overflow.event.metadata.causation_parent_id == filled.event.event_id


def test_commands_make_chains_groups_and_chords(cqrs: CQRS, data: redis.Redis) -> None:
    # given signatures of commands
    fill = cqrs.app.tasks["depot.fill_box"].si
    # when they are chained, then they run one after the other
    chained = chain(*[fill(FillBox(id="chained", count=n)) for n in (1, 2, 3)]).apply_async()
    assert chained.get(timeout=10)["value"] == 6
    assert counts(cqrs, "chained") == [1, 2, 3]
    # and all of them are traced to the chain's beginning
    history = cqrs.store.read_stream(StreamName("depot", "DepotBox", "chained"))
    assert len({stored.event.metadata.correlation_id for stored in history}) == 1
    # and each is caused by the one before
    traces = [stored.event.metadata for stored in history]
    causes = [trace.causation_id for trace in traces]
    assert [trace.causation_parent_id for trace in traces] == ["", *causes[:-1]]
    # when they are a group, and a chord's head, then all run, and then its body
    grouped = group(fill(FillBox(id=f"grouped-{n}", count=n)) for n in (1, 2, 3)).apply_async()
    assert [value["value"] for value in grouped.get(timeout=10)] == [1, 2, 3]
    body = fill(FillBox(id="chord", count=9))
    done = chord([fill(FillBox(id="chord", count=n)) for n in (1, 2)])(body)
    assert done.get(timeout=10)["value"] == 12
    assert counts(cqrs, "chord") == [1, 2, 9]


def test_another_service_sends_a_command_by_its_class_alone(
    cqrs: CQRS, server: RedisNode, data: redis.Redis
) -> None:
    # given a service that has the class, and no handler, and another name
    script = f"""
        from celery import Celery
        from cqrs_celery import CQRS, Aggregate, Command

        app = Celery("sales", broker={server.url!r}, backend={server.url!r})
        app.conf.broker_transport = "cqrs_celery.transport:Transport"
        CQRS(app)

        class Box(Aggregate, name="DepotBox"):
            pass

        class FillBox(Command, name="depot.fill_box", aggregate=Box, key="id"):
            id: str
            count: int

        print([FillBox(id="sold", count=n).delay().get(timeout=10)["value"] for n in (1, 2)])
    """
    # when it sends two
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    # then the depot's worker has handled them
    assert run.stdout == "[1, 3]\n", run.stderr
    assert counts(cqrs, "sold") == [1, 2]


BILLING = """
    import os

    import redis
    from celery import Celery
    from cqrs_celery import CQRS, Event, RecordedEvent, subscribes

    app = Celery("billing", broker=os.environ["DEPOT_URL"])
    app.conf.broker_transport = "cqrs_celery.transport:Transport"
    CQRS(app)

    class Filled(Event, name="depot.box_filled"):
        count: int

    @subscribes(Filled)
    def bill(event: Filled, recorded: RecordedEvent[Filled]) -> None:
        with redis.Redis.from_url(os.environ["DEPOT_URL"]) as client:
            client.rpush("seen:bill:" + recorded.aggregate_id, recorded.version)
            client.set("billed:" + str(recorded.stream), event.count)
"""


def test_another_service_that_shares_only_redis_subscribes(
    cqrs: CQRS, data: redis.Redis, server: RedisNode, worker_factory: WorkerFactory
) -> None:
    # given a service with an event class of its own under the depot's name
    worker_factory(
        BILLING, module="billing", pool="solo", arguments=ALONE, env={"DEPOT_URL": server.url}
    )
    # when the depot commits
    fill_in_turns(cqrs, ["billed"], 3)
    # then it gets every event, in order, and so does the depot
    wait_until(lambda: len(depot.seen(data, "bill", "billed")) == 3, 10, "the bills")
    assert depot.seen(data, "bill", "billed") == [1, 2, 3]
    assert data.get("billed:DepotBox-billed") == b"3"
    wait_until(lambda: len(depot.seen(data, "shelf", "billed")) == 3, 10, "the shelf")


def test_what_is_committed_while_no_worker_runs_arrives_later_and_queues_are_those_asked_for(
    redis_url: str, worker_factory: WorkerFactory
) -> None:
    # given a worker that consumes one queue of several
    cqrs, data = depot.client(redis_url), redis.Redis.from_url(redis_url)
    options: dict[str, Any] = {"pool": "solo", "arguments": ALONE, "env": {"DEPOT_URL": redis_url}}
    shelf = worker_factory(APPLICATION, queues=["depot.shelf"], **options)
    # when something is sent and committed
    cqrs.send_command(Ring(bell="early"))
    cqrs.execute(FillBox(id="a", count=1))
    wait_until(lambda: depot.seen(data, "shelf", "a") == [1], 10, "the shelf")
    # then the worker consumes exactly that queue
    assert queues_of(cqrs, shelf) == ["depot.shelf"]
    queue = ReliableQueue(data)
    assert queue.count("depot.commands").ready == 1
    assert queue.count("depot.order_more_boxes").ready == 1
    # given that no worker runs; when something is committed
    shelf.stop()
    cqrs.execute(FillBox(id="a", count=100))
    cqrs.execute(EmptyBox(id="a"))
    # then a worker that comes later gets it all, in order, from all queues of its handlers (74)
    everything = worker_factory(APPLICATION, **options)
    wait_until(lambda: depot.seen(data, "shelf", "a") == [1, 2, 3], 10, "what was missed")
    wait_until(lambda: data.lrange("rung", 0, -1) == [b"early"], 10, "the command")
    wait_until(lambda: depot.seen(data, "shelf", "a-overflow") == [1], 10, "what followed from it")
    assert queues_of(cqrs, everything) == QUEUES
    data.close()


def queues_of(cqrs: CQRS, worker: WorkerNode) -> list[str]:
    """Return the queues that a worker says it consumes, sorted."""
    answer = cqrs.app.control.inspect(destination=[worker.hostname], timeout=3).active_queues()
    return sorted(queue["name"] for queue in answer[worker.hostname])


def test_inspect_events_and_flower_show_handlers_and_subscriptions_by_name(
    cqrs: CQRS, worker: WorkerNode, server: RedisNode, tmp_path: Path
) -> None:
    # given a worker, Flower, and somebody who listens to events
    inspect = cqrs.app.control.inspect(destination=[worker.hostname], timeout=3)
    registered = inspect.registered()[worker.hostname]
    assert registered == TASKS
    flower = FlowerNode(tmp_path, server.url)
    try:
        flower.start()
        with listening(cqrs) as events:
            flower.wait_ready()
            wait_until(events, 10, "a heartbeat")
            wait_until(lambda: "depot@test" in flower.get("/workers?json=1"), 10, "Flower's worker")
            # when commands and events have been handled
            task = cqrs.send_command(FillBox(id="shown", count=2))
            task.get(timeout=10)
            # then each task is told of under its name, with what it was given
            wanted = {"depot.fill_box", "depot.shelf.shelve", "depot.order_more_boxes"}
            told = wait_until(
                lambda: told_of(events(), wanted), 10, lambda: f"the events: {events()}"
            )
            assert told["depot.fill_box"][0] == task.id
            assert "FillBox(id='shown', count=2)" in told["depot.fill_box"][1]
            # the id of a subscriber's task is the event and the subscription
            (filled,) = cqrs.store.read_stream(StreamName("depot", "DepotBox", "shown"))
            for name in wanted - {"depot.fill_box"}:
                assert told[name][0] == f"{filled.event.event_id}:{name}"

        # and Flower's pages have them
        def shown() -> dict[str, Any]:
            tasks = json.loads(flower.get("/api/tasks"))
            done = {t["name"]: t for t in tasks.values() if t["state"] == "SUCCESS"}
            return done if wanted <= set(done) else {}

        tasks = wait_until(shown, 10, lambda: f"Flower's tasks:\n{flower.get('/api/tasks')}")
        assert tasks["depot.fill_box"]["uuid"] == task.id
        assert "depot.fill_box" in flower.get(f"/task/{task.id}")
        lengths = wait_until(lambda: lengths_at(flower), 10, "Flower to know the worker's queues")
        assert lengths == dict.fromkeys(QUEUES, 0)
        assert "depot.shelf" in flower.get("/broker")
    finally:
        flower.teardown()


def lengths_at(flower: FlowerNode) -> dict[str, int]:
    """Return the length of each queue of the worker, as soon as Flower has asked the worker."""
    queues = json.loads(flower.get("/api/queues/length"))["active_queues"]
    lengths = {queue["name"]: queue["messages"] for queue in queues}
    return lengths if "depot.shelf" in lengths else {}


def told_of(events: list[dict[str, Any]], names: set[str]) -> dict[str, tuple[str, str]]:
    """Return id and arguments of tasks that were received and have succeeded, by their names."""
    done = {event["uuid"] for event in events if event["type"] == "task-succeeded"}
    told = {
        event["name"]: (event["uuid"], event["args"])
        for event in events
        if event["type"] == "task-received" and event["uuid"] in done
    }
    return told if names <= set(told) else {}


@contextmanager
def listening(cqrs: CQRS) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Collect the workers' events while the block runs; gives a function that returns them."""
    found: list[dict[str, Any]] = []
    with cqrs.app.connection() as connection:
        receiver = cqrs.app.events.Receiver(connection, handlers={"*": found.append})
        with receiver.consumer_context(wakeup=False) as (own_connection, _, _):

            def collect() -> list[dict[str, Any]]:
                with suppress(TimeoutError):
                    own_connection.drain_events(timeout=0.2)
                return found

            yield collect


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cqrs_event_stor": "broker"}, "did you mean 'cqrs_event_store'"),
        ({"broker_transport": "redis"}, "the broker must be the reliable queue"),
    ],
)
def test_a_worker_with_a_wrong_setting_ends_at_its_start_and_says_why(
    settings: dict[str, Any], text: str, redis_url: str, worker_factory: WorkerFactory
) -> None:
    env = {"DEPOT_URL": redis_url, "DEPOT_SETTINGS": json.dumps(settings)}
    worker = worker_factory(APPLICATION, pool="solo", arguments=ALONE, env=env, is_started=False)
    worker.start()
    wait_until(lambda: worker.status == "exited", 15, lambda: f"the end:\n{worker.log_tail()}")
    assert text in worker.logs()
    assert "ready." not in worker.logs()
