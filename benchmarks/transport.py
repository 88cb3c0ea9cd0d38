"""Measure the reliable transport against Kombu's redis://, and RabbitMQ where it is installed.

    python -m benchmarks.transport [--json FILE] [--rounds N] [--only NAME] [--full] [--short]

Each broker has a server of its own, started here, without persistence, and stopped at the end. A
round measures one broker after the other, the order turned about from round to round, so that a
ratio compares neighbours in time; a row shows the median, and the least and most of all rounds. A
row of which a run is not as it should be has failed: each task must have run exactly once, each
message must be in the queue.

- publish: `.delay()`, and Kombu's producer inside `Producer.batch`, after a warm-up.
- drain: a worker with late acks meets a full queue, with Celery's own prefetch, and with more. The
  clock runs from a task behind the warm-up to one behind the no-op tasks.
- latency: both brokers' workers are idle; one message at a time goes to one of them in turn; from
  the publish to the first line of the task.
- commands and round trips: counted by MONITOR and by the client, in a run of their own, publish
  included.
- memory: `used_memory` per queued message, with a record of each publish id on our side.
- idle: the commands of 20 waiting consumers, and how many of them a message wakes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import kombu
import redis

from benchmarks._report import OURS, Bar, Report, parse, parser_of, server_version
from benchmarks._transport_app import make_app, read_ran, read_stamps, read_trips
from tests.nodes import ProcessNode, RedisNode, WorkerNode, free_port
from tests.waiting import wait_until

STOCK, RABBIT = "stock", "RabbitMQ"

PUBLISHES = 3_000
BATCH = 100
TASKS = 10_000
WARM_UP = 500
LATENCY_MESSAGES = 150
COUNTED_TASKS = 2_000
IDLE_CONSUMERS = 20
IDLE_S = 20.0
WAKING_MESSAGES = 20

#: Deleting happens at once, on every server: Valkey would free memory behind our back.
SETTINGS = {"lazyfree-lazy-user-del": "no", "lazyfree-lazy-user-flush": "no"}

#: A row's name: the pool, its concurrency, and messages prefetched per slot; 4 is Celery's default.
POOLS = {
    "solo": ("solo", 1, 4),
    "solo, prefetch 64": ("solo", 1, 64),
    "prefork -c 2": ("prefork", 2, 4),
    "prefork -c 2, prefetch 128": ("prefork", 2, 64),
    "threads -c 2": ("threads", 2, 4),
    "threads -c 8": ("threads", 8, 4),
    "gevent -c 8": ("gevent", 8, 4),
}

#: A row's name, and what its ratio, ours to stock, must be.
BARS: dict[str, tuple[str, float]] = {
    "publish by .delay(), messages/s": (">=", 1.1),
    "publish in batches, messages/s": (">=", 1.0),
    "drain, solo, tasks/s": (">=", 5.0),
    "drain, prefork -c 2, tasks/s": (">=", 3.0),
    "drain, threads -c 8, tasks/s": (">=", 4.0),
    "drain, gevent -c 8, tasks/s": (">=", 3.0),
    "latency, solo, p50, ms": ("<=", 1.0),
    "latency, prefork -c 2, p50, ms": ("<=", 1.0),
    "commands per task, solo": ("<=", 1 / 3),
    "commands per task, prefork -c 2": ("<=", 1 / 3),
    "memory per queued task, bytes": ("<=", 1.2),
    "memory of an event to 3 queues, bytes": ("<=", 0.6),
}
#: A row's name, and what our value must be.
LIMITS: dict[str, tuple[str, float]] = {
    "commands of 20 idle consumers, 1/s": ("<", 50),
    "consumers woken by one message": ("<=", 1.0),
}

#: The short form: the same rows, by fewer messages and rounds; see `REPEATED` too.
SHORT = {"rounds": 3, "tasks": 5_000, "messages": 30_000, "idle_s": 8.0, "latency_messages": 80}

#: Rounds of what varies little from one to the next, or takes long, unless `--rounds` are fewer:
#: in the long form, and in the short one, where a row with a bar has three.
REPEATED = {"memory": (1, 3), "commands": (1, 3), "idle": (1, 1)}


class RabbitNode(ProcessNode):
    """A RabbitMQ server on a loopback port."""

    def __init__(self, directory: Path, binary: str) -> None:
        super().__init__("rabbitmq", directory)
        self._binary = binary
        self.port, self._distribution_port, self._names_port = free_port(), free_port(), free_port()

    @property
    def id(self) -> str:
        return f"rabbit-{self.port}"

    @property
    def celeryconfig(self) -> dict[str, Any]:
        return {}

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def command(self) -> list[str]:
        return [self._binary]

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "HOME": str(self.directory),
            "RABBITMQ_NODENAME": f"bench{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "ERL_EPMD_PORT": str(self._names_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_RELAXED_COMMAND_CHECK": "1",
            "RABBITMQ_MNESIA_BASE": str(self.directory),
            "RABBITMQ_LOG_BASE": str(self.directory),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
        }

    def teardown(self) -> None:
        super().teardown()
        # Erlang's service of names is a daemon, which outlives its starter.
        names = shutil.which("epmd")
        if names:
            port = str(self._names_port)
            subprocess.run([names, "-port", port, "-kill"], capture_output=True, check=False)

    def is_ready(self) -> bool:
        try:
            with kombu.Connection(self.url, connect_timeout=1) as connection:
                connection.connect()
        except OSError:
            return False
        return True


class Broker:
    """Be one of the brokers under test, with its server."""

    def __init__(self, name: str, node: Any, url: str) -> None:
        self.name = name
        self.node = node
        self.url = url
        self.app = make_app(url)

    @property
    def has_redis(self) -> bool:
        return isinstance(self.node, RedisNode)

    def empty(self) -> None:
        """Drop all messages."""
        if self.has_redis:
            with self.node.client() as client:
                client.flushall()
        else:
            self.depth()
            self.app.control.purge()

    def depth(self) -> int:
        """Return the number of messages in the queue, which is declared if it is not."""
        with self.app.connection_for_write() as connection:
            queue = kombu.Queue("celery", kombu.Exchange("celery"), routing_key="celery")
            queue = queue.bind(connection.default_channel)
            queue.declare()
            return int(queue.queue_declare().message_count)

    def check_depth(self, expected: int) -> None:
        """Fail unless the queue has, or soon has, so many messages."""
        wait_until(
            lambda: self.depth() == expected,
            10,
            lambda: f"{self.name}: {self.depth()} messages queued, not {expected}",
        )

    def fill(self, tasks: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        """Publish tasks, fast, and check that all arrived."""
        before = self.depth()
        with self.app.producer_pool.acquire(block=True) as producer, producer.batch(1_000):
            for name, args in tasks:
                self.app.send_task(name, args, producer=producer)
        self.check_depth(before + len(tasks))

    @contextlib.contextmanager
    def worker(self, folder: Path, pool: str, **env: str) -> Iterator[WorkerNode]:
        """Run a worker that logs nothing about tasks."""
        kind, concurrency, prefetch = POOLS[pool]
        node = WorkerNode(
            folder,
            "benchmarks._transport_app",
            pool=kind,
            concurrency=concurrency,
            loglevel="WARNING",
            env={
                "BENCH_BROKER": self.url,
                "BENCH_OUT": str(folder),
                "BENCH_PREFETCH": str(prefetch),
                "C_FORCE_ROOT": "1",
                **env,
            },
        )
        node.start()
        try:
            yield node
        finally:
            node.teardown()


class Benchmark:
    """Measure, round by round, and keep each sample."""

    def __init__(
        self, brokers: list[Broker], scratch: Path, options: argparse.Namespace, report: Report
    ) -> None:
        self.brokers = brokers
        self.scratch = scratch
        self.report = report
        self.messages: int = options.messages
        self.tasks: int = options.tasks
        self.latency_messages: int = options.latency_messages
        self.idle_s: float = options.idle_s
        self._folders = 0

    def note(self, row: str, broker: Broker, value: float) -> None:
        """Keep one sample."""
        self.report.note(row, broker.name, value)

    def folder(self) -> Path:
        """Return a new empty folder."""
        self._folders += 1
        folder = self.scratch / f"run-{self._folders}"
        folder.mkdir()
        return folder

    def in_turn(self, number: int) -> list[Broker]:
        """Return the brokers in the order of a round: the other way round each time."""
        return self.brokers if number % 2 == 0 else self.brokers[::-1]

    # ------------------------------------------------------------ publish

    def publish(self, number: int) -> None:
        """Publish by `.delay()`, and by a producer in batches."""
        self.report.run("publish by .delay()", self._publish_singles, number)
        self.report.run("publish in batches", self._publish_in_turn, number)

    def _publish_singles(self, number: int) -> None:
        for broker in self.in_turn(number):
            broker.empty()
            broker.depth()
            noop = broker.app.tasks["noop"]
            for _ in range(WARM_UP):
                noop.delay()
            rate = _rate(PUBLISHES, lambda: [noop.delay() for _ in range(PUBLISHES)])  # noqa: B023
            broker.check_depth(WARM_UP + PUBLISHES)
            self.note("publish by .delay(), messages/s", broker, rate)

    def _publish_in_turn(self, number: int) -> None:
        for broker in self.in_turn(number):
            broker.empty()
            self._publish_batches(broker)

    def _publish_batches(self, broker: Broker) -> None:
        body = [[], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        queue = kombu.Queue("celery", kombu.Exchange("celery"), routing_key="celery")
        with broker.app.connection_for_write() as connection:
            producer = kombu.Producer(connection, exchange=queue.exchange, serializer="json")
            queue.bind(connection.default_channel).declare()

            def send(count: int) -> None:
                for _ in range(count // BATCH):
                    with producer.batch(BATCH):
                        for _ in range(BATCH):
                            producer.publish(
                                body, routing_key="celery", headers={"task": "noop", "id": "1"}
                            )

            send(WARM_UP)
            rate = _rate(2 * PUBLISHES, lambda: send(2 * PUBLISHES))
        broker.check_depth(WARM_UP + 2 * PUBLISHES)
        self.note("publish in batches, messages/s", broker, rate)

    # ------------------------------------------------------------ drain

    def drain(self, number: int) -> None:
        """Let a worker of each pool meet a full queue."""
        for pool in POOLS:
            self.report.run(f"drain, {pool}", self._drain_in_turn, pool, number)

    def _drain_in_turn(self, pool: str, number: int) -> None:
        for broker in self.in_turn(number):
            self.note(f"drain, {pool}, tasks/s", broker, self._drain(broker, pool))

    def _drain(self, broker: Broker, pool: str) -> float:
        folder = self.folder()
        broker.empty()
        noops = [("noop", ())]
        clock: list[tuple[str, tuple[Any, ...]]] = [("stamp", (0.0,))]
        broker.fill([*noops * WARM_UP, *clock, *noops * self.tasks, *clock])
        total = WARM_UP + self.tasks
        with broker.worker(folder, pool):
            self._wait_drained(broker, folder, total)
        (_, first), (_, last) = read_stamps(folder)
        return self.tasks / (last - first)

    def _wait_drained(self, broker: Broker, folder: Path, total: int) -> None:
        """Wait until all ran; then a while longer, to see that none runs twice."""
        wait_until(
            lambda: len(read_stamps(folder)) == 2 and read_ran(folder) >= total,
            180,
            lambda: f"{broker.name}: {read_ran(folder)} of {total} ran",
        )
        time.sleep(0.3)
        ran = read_ran(folder)
        assert ran == total, f"{broker.name}: {ran} runs of {total} tasks"
        assert len(read_stamps(folder)) == 2, f"{broker.name}: a clock task ran twice"

    # ------------------------------------------------------------ latency

    def latency(self, number: int) -> None:
        """Send one message at a time to idle workers, to one broker's and another's in turn."""
        for pool in ("solo", "prefork -c 2"):
            self.report.run(f"latency, {pool}", self._latency, pool, number)

    def _latency(self, pool: str, number: int) -> None:
        with contextlib.ExitStack() as stack:
            folders = {}
            for broker in self.brokers:
                broker.empty()
                folders[broker.name] = self.folder()
                stack.enter_context(broker.worker(folders[broker.name], pool))
            for _ in range(20):
                self._send_one(folders)
            warm = {name: len(read_stamps(folder)) for name, folder in folders.items()}
            for _ in range(self.latency_messages):
                self._send_one(folders, random.uniform(0.02, 0.04))
        for broker in self.in_turn(number):
            stamps = read_stamps(folders[broker.name])[warm[broker.name] :]
            assert len(stamps) == self.latency_messages, f"{broker.name}: {len(stamps)} stamps"
            took = sorted(1e3 * (started - sent) for sent, started in stamps)
            self.note(f"latency, {pool}, p50, ms", broker, statistics.median(took))
            self.note(f"latency, {pool}, p99, ms", broker, took[int(len(took) * 0.99)])

    def _send_one(self, folders: dict[str, Path], pause_s: float = 0.05) -> None:
        for broker in self.brokers:
            folder = folders[broker.name]
            before = len(read_stamps(folder))
            broker.app.tasks["stamp"].delay(time.time())
            wait_until(lambda: len(read_stamps(folder)) > before, 60, "a stamp")  # noqa: B023
            time.sleep(pause_s)

    # ------------------------------------------------------------ commands

    def commands(self, number: int) -> None:
        """Count commands and round trips of a task's whole life."""
        for pool in ("solo", "prefork -c 2"):
            self.report.run(f"commands, {pool}", self._count_in_turn, pool, number)

    def _count_in_turn(self, pool: str, number: int) -> None:
        for broker in self.in_turn(number):
            if broker.has_redis:
                self._count(broker, pool)

    def _count(self, broker: Broker, pool: str) -> None:
        folder = self.folder()
        broker.empty()
        broker.depth()
        noop, stamp = broker.app.tasks["noop"], broker.app.tasks["stamp"]
        noop.delay()
        with _Monitor(broker.node) as monitor:
            before = _all_commands(broker.node)
            for _ in range(100):
                noop.delay()
            published = monitor.count() / 100
            published_all = (_all_commands(broker.node) - before) / 100
        broker.empty()
        clock: list[tuple[str, tuple[Any, ...]]] = [("stamp", (0.0,))]
        broker.fill([*[("noop", ())] * WARM_UP, *clock, *[("noop", ())] * COUNTED_TASKS, *clock])
        assert stamp is not None
        with _Monitor(broker.node) as monitor, broker.worker(folder, pool, BENCH_COUNT="1"):
            self._wait_drained(broker, folder, WARM_UP + COUNTED_TASKS)
        (_, first), (_, last) = read_stamps(folder)
        outside, everything = monitor.between(first, last)
        self.note(f"commands per task, {pool}", broker, published + outside / COUNTED_TASKS)
        self.note(
            f"commands per task, those in scripts too, {pool}",
            broker,
            published_all + everything / COUNTED_TASKS,
        )
        trips = read_trips(folder, first, last) / COUNTED_TASKS
        self.note(f"round trips per task, {pool}", broker, published + trips)

    # ------------------------------------------------------------ memory

    def memory(self, number: int) -> None:
        """Fill a queue, and see what the server has allocated."""
        self.report.run("memory", self._memory, number)

    def _memory(self, number: int) -> None:
        for broker in self.in_turn(number):
            if not broker.has_redis:
                continue
            broker.empty()
            # What a publish id takes, too: kept for as long as the filling takes.
            options = {"dedup_ttl_s": 86_400} if broker.name == OURS else {}
            app = make_app(broker.url, broker_transport_options=options)
            broker.depth()
            before = _used_memory(broker.node)
            with app.producer_pool.acquire(block=True) as producer, producer.batch(1_000):
                for _ in range(self.messages):
                    app.send_task("noop", producer=producer)
            broker.check_depth(self.messages)
            grown = _used_memory(broker.node) - before
            self.note("memory per queued task, bytes", broker, grown / self.messages)
            if broker.name == OURS:
                _forget_publish_ids(broker.node)
                grown = _used_memory(broker.node) - before
            row = "memory per queued task, publish ids forgotten, bytes"
            self.note(row, broker, grown / self.messages)
            app.close()
            broker.empty()
            self._fill_event_queues(broker, self.messages // 4)

    def _fill_event_queues(self, broker: Broker, events: int) -> None:
        """Publish an event of 300 bytes by a topic exchange to three queues."""
        exchange = kombu.Exchange("bench-events", type="topic")
        event = {"item": "x" * 270, "version": 1}
        body = [[event], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
        options = {"dedup_ttl_s": 86_400} if broker.name == OURS else {}
        headers: dict[str, Any] = {
            "lang": "py", "task": "subscriber", "id": "0" * 36, "root_id": "0" * 36,
            "parent_id": None, "retries": 0, "eta": None, "expires": None, "group": None,
            "timelimit": [None, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "bench",
            "ignore_result": True, "stamps": {},
        }  # fmt: skip
        with kombu.Connection(broker.url, transport_options=options) as connection:
            channel = connection.default_channel
            queues = [
                kombu.Queue(f"events-{i}", exchange, routing_key="inventory.#").bind(channel)
                for i in range(3)
            ]
            for queue in queues:
                queue.declare()
            producer = kombu.Producer(connection, exchange=exchange, serializer="json")
            before = _used_memory(broker.node)
            with producer.batch(300):
                for _ in range(events):
                    producer.publish(body, routing_key="inventory.checked_in", headers=headers)
            for queue in queues:
                count = queue.queue_declare(passive=True).message_count
                assert count == events, f"{broker.name}: {count} of {events} events in {queue}"
            grown = _used_memory(broker.node) - before
        self.note("memory of an event to 3 queues, bytes", broker, grown / events)
        broker.empty()

    # ------------------------------------------------------------ idle

    def idle(self, number: int) -> None:
        """Let consumers wait for messages that do not come, then for some that do."""
        self.report.run("idle", self._idle, number)

    def _idle(self, number: int) -> None:
        for broker in self.in_turn(number):
            if not broker.has_redis:
                continue
            broker.empty()
            broker.depth()
            command = [sys.executable, "-m", "benchmarks.transport", "--wait-on", broker.url]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert process.stdout is not None
                assert process.stdout.readline().strip() == "waiting"
                time.sleep(3)
                with _Monitor(broker.node) as monitor:
                    time.sleep(self.idle_s)
                    outside, everything = monitor.between(0, time.time())
                    self.note("commands of 20 idle consumers, 1/s", broker, outside / self.idle_s)
                    row = "commands of 20 idle consumers, those in scripts too, 1/s"
                    self.note(row, broker, everything / self.idle_s)
                    if broker.name == OURS:
                        self._wake(broker, monitor)
            finally:
                process.kill()
                process.wait()

    def _wake(self, broker: Broker, monitor: _Monitor) -> None:
        before = monitor.count('"PUBLISH" "cq:wake:')
        for _ in range(WAKING_MESSAGES):
            broker.app.tasks["noop"].delay()
            time.sleep(0.2)
        assert broker.depth() == 0, "a message was not taken"
        woken = monitor.count('"PUBLISH" "cq:wake:') - before
        self.note("consumers woken by one message", broker, woken / WAKING_MESSAGES)


class _Monitor:
    """Read MONITOR: each command with its time, and whether a script called it."""

    def __init__(self, node: RedisNode) -> None:
        self._node = node
        self._lines: list[str] = []

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.transport", "--monitor", str(self._node.port)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "monitoring"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._settle()
        self._process.kill()
        self._thread.join()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def _settle(self) -> None:
        """Wait until what was done before this call has been read."""
        mark = f"mark-{random.random()}"
        with self._node.client() as client:
            client.echo(mark)
        wait_until(lambda: any(mark in line for line in self._lines[-50:]), 30, "MONITOR's mark")

    def count(self, text: str = "") -> int:
        """Return how many commands from outside there were, or all those with a text."""
        self._settle()
        lines = [line for line in self._lines if not _is_own(line)]
        return sum(text in line if text else " lua] " not in line for line in lines)

    def between(self, since: float, until: float) -> tuple[int, int]:
        """Return the commands of that time: from outside, and those that scripts called too."""
        if self._process.poll() is None:
            self._settle()
        outside = everything = 0
        for line in self._lines:
            if not _is_own(line) and since <= float(line.split(" ", 1)[0]) <= until:
                everything += 1
                outside += " lua] " not in line
        return outside, everything


def _is_own(line: str) -> bool:
    return any(f'"{word}"' in line.upper() for word in ("ECHO", "INFO", "CLIENT", "HELLO", "PING"))


def monitor(port: int) -> None:
    """Print what MONITOR says, in a process of its own, until it is killed."""
    client = redis.Redis(port=port)
    connection = client.connection_pool.get_connection()
    connection.send_command("MONITOR")
    connection.read_response()
    print("monitoring", flush=True)
    sock: Any = connection._sock
    while data := sock.recv(1 << 20):
        # Replies are "+1700000000.1 [0 127.0.0.1:1] "GET" "k"\r\n"
        sys.stdout.write(data.decode(errors="replace").replace("\r\n+", "\n").lstrip("+"))
        sys.stdout.flush()


def wait_on(url: str) -> None:
    """Consume from the queue with idle consumers, one a thread, until killed."""
    import cqrs_celery.transport  # noqa: F401 - registers reliable-redis://

    ready = threading.Barrier(IDLE_CONSUMERS + 1)

    def consume() -> None:
        connection = kombu.Connection(url)
        queue = kombu.Queue("celery", kombu.Exchange("celery"), routing_key="celery")
        consumer = kombu.Consumer(
            connection, [queue], callbacks=[lambda body, message: message.ack()], prefetch_count=4
        )
        with consumer:
            ready.wait()
            while True:
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=5)

    for _ in range(IDLE_CONSUMERS):
        threading.Thread(target=consume, daemon=True).start()
    ready.wait()
    print("waiting", flush=True)
    threading.Event().wait()


def _rate(count: int, action: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    action()
    return count / (time.perf_counter() - started)


def _used_memory(node: RedisNode) -> int:
    with node.client() as client:
        info: Any = client.info("memory")
    return int(info["used_memory"])


def _all_commands(node: RedisNode) -> int:
    with node.client() as client:
        stats: Any = client.info("commandstats")
    own = {"info", "echo", "client", "hello", "ping", "monitor"}
    return sum(
        v["calls"] for k, v in stats.items() if k.removeprefix("cmdstat_").split("|")[0] not in own
    )


def _forget_publish_ids(node: RedisNode) -> None:
    with node.client() as client:
        cursor = 0
        while True:
            cursor, keys = client.scan(cursor, match="*cq:dedup:*", count=10_000)
            if keys:
                client.delete(*keys)
            if cursor == 0:
                return


# ---------------------------------------------------------------- report


def bars() -> dict[str, list[Bar]]:
    """Return the bars of each row: of its ratio to stock, or of our own value."""
    found = {name: [Bar(sign, value, STOCK)] for name, (sign, value) in BARS.items()}
    for name, (sign, value) in LIMITS.items():
        found.setdefault(name, []).append(Bar(sign, value))
    return found


def start_brokers(scratch: Path) -> list[Broker]:
    """Start a server for each broker."""
    brokers = []
    for name, scheme in ((STOCK, "redis"), (OURS, "reliable-redis")):
        folder = scratch / name
        folder.mkdir()
        node = RedisNode(folder, name=f"redis-{name}", appendonly=False, options=SETTINGS)
        node.start()
        brokers.append(Broker(name, node, node.url.replace("redis", scheme, 1)))
    # Debian's command on PATH is for its own service; the server's is beside its library.
    places = os.pathsep.join(["/usr/lib/rabbitmq/bin", os.environ["PATH"]])
    binary = shutil.which("rabbitmq-server", path=places)
    if binary:
        folder = scratch / "rabbitmq"
        folder.mkdir()
        rabbit = RabbitNode(folder, binary)
        rabbit.start()
        try:
            rabbit.wait_ready(60)
        except BaseException:
            rabbit.teardown()
            raise
        brokers.append(Broker(RABBIT, rabbit, rabbit.url))
    return brokers


def note_versions(report: Report, brokers: list[Broker]) -> None:
    """Note what was measured on what, and that RabbitMQ was not."""
    with brokers[0].node.client() as client:
        report.versions["server"] = server_version(client)
    for broker in brokers:
        if broker.name == RABBIT:
            with kombu.Connection(broker.url) as connection:
                connection.connect()
                properties = connection.connection.server_properties
            version = properties["version"]
            report.versions[RABBIT] = version.decode() if isinstance(version, bytes) else version
            return
    report.leave_out(RABBIT, "there is no rabbitmq-server on this machine")


def main() -> int:
    """Run the rounds, and report."""
    parser = parser_of("transport", __doc__, rounds=3)
    measures = ("publish", "drain", "latency", "commands", "memory", "idle")
    parser.add_argument("--only", choices=measures, help="measure this alone")
    parser.add_argument("--tasks", type=int, default=TASKS, help="of a drain")
    parser.add_argument("--messages", type=int, default=200_000, help="queued ones, for memory")
    parser.add_argument("--full", action="store_true", help="a million queued messages")
    parser.add_argument("--latency-messages", type=int, default=LATENCY_MESSAGES)
    parser.add_argument("--idle-s", type=float, default=IDLE_S, help="seconds of idle consumers")
    parser.add_argument("--monitor", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--wait-on", help=argparse.SUPPRESS)
    options = parse(parser, SHORT)
    if options.monitor:
        monitor(options.monitor)
        return 0
    if options.wait_on:
        wait_on(options.wait_on)
        return 0
    if options.full:
        options.messages = 1_000_000
    report = Report("transport", options, bars())
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        brokers = start_brokers(scratch)
        try:
            benchmark = Benchmark(brokers, scratch, options, report)
            note_versions(report, brokers)
            for measure in [options.only] if options.only else measures:
                rounds = options.rounds
                if measure in REPEATED:
                    rounds = min(rounds, REPEATED[measure][options.short])
                for number in range(rounds):
                    getattr(benchmark, measure)(number)
                    print(f"{measure}: round {number + 1} of {rounds}", file=sys.stderr)
        finally:
            for broker in brokers:
                broker.app.close()
                broker.node.teardown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
