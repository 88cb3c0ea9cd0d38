"""A server, workers, and a journal of what their tasks did: for tests that kill, freeze and cut.

    with Lab(folder, lease_s=1) as lab:
        worker = lab.worker(pool="solo")
        lab.send(1)
        lab.wait_done(1)

The journal is a file to which tasks append, so it stays when the server does not. A failure shows
the last output of every node.
"""

from __future__ import annotations

import contextlib
import json
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import redis
from celery import Celery
from kombu import pools

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import QueueCount
from cqrs_celery.transport import TRANSPORT
from cqrs_celery.transport.envelope import SEQUENCE_HEADER
from tests.nodes import RedisNode, WorkerNode
from tests.waiting import wait_until

#: Saves the second in which a starting worker looks for others.
ALONE = ("--without-mingle", "--without-gossip")

#: The queue that workers consume if nothing else is said.
QUEUE = "work"

#: The workers' application. Its settings come by the environment.
SOURCE = '''
    """Tasks that note in a file what they do, and wait at gates: files that the test makes."""

    import json
    import os
    import signal
    import time

    from celery import Celery
    from celery.exceptions import Reject

    FOLDER = os.environ["LAB_FOLDER"]
    app = Celery("lab")
    app.conf.update(json.loads(os.environ["LAB_CONF"]))

    if app.conf.get("lab_thread_delay_s"):
        # A thread that has taken a task is not heard of for so long, as on a busy machine.
        from concurrent.futures import thread

        begin = thread._WorkItem.run

        def begin_late(*args):
            time.sleep(app.conf["lab_thread_delay_s"])
            begin(*args)

        thread._WorkItem.run = begin_late


    def note(event, n, retries=0):
        line = f"{event} {n} {retries} {os.getpid()} {time.monotonic()}\\n"
        end = os.open(f"{FOLDER}/journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(end, line.encode())
        os.close(end)


    def wait_at(gate):
        while gate and not os.path.exists(f"{FOLDER}/{gate}"):
            time.sleep(0.01)


    @app.task(bind=True, name="work")
    def work(self, n, gate="", seconds=0.0):
        note("start", n, self.request.retries)
        wait_at(gate)
        time.sleep(seconds)
        note("done", n, self.request.retries)


    @app.task(name="kill", bind=True)
    def kill(self, n, gate="deadly"):
        """Kill the process that runs this, unless its gate is open."""
        note("start", n, self.request.retries)
        if not os.path.exists(f"{FOLDER}/{gate}"):
            os.kill(os.getpid(), signal.SIGKILL)
        note("done", n, self.request.retries)


    @app.task(name="again", bind=True, max_retries=None)
    def again(self, n, times=1, countdown=0.0, gate=""):
        """Publish a retry of itself so many times, each time waiting at the gate after it."""
        note("start", n, self.request.retries)
        if self.request.retries < times:
            failed = self.retry(countdown=countdown, throw=False)
            note("retried", n, self.request.retries)
            wait_at(gate)
            raise failed
        note("done", n, self.request.retries)


    @app.task(name="refuse", bind=True)
    def refuse(self, n, gate=""):
        """Reject with requeue until the gate is open."""
        note("start", n, self.request.retries)
        if not os.path.exists(f"{FOLDER}/{gate}"):
            raise Reject("not yet", requeue=True)
        note("done", n, self.request.retries)
'''

#: Shifts the clock of every process that runs in the folder: Python imports it at its start.
CLOCK = '''
    """Shift this process's idea of the time by LAB_CLOCK_S seconds."""

    import datetime
    import os
    import time

    SHIFT_S = float(os.environ.get("LAB_CLOCK_S") or 0)
    if SHIFT_S:
        _time, _time_ns, _datetime = time.time, time.time_ns, datetime.datetime
        time.time = lambda: _time() + SHIFT_S
        time.time_ns = lambda: _time_ns() + int(SHIFT_S * 1e9)

        class Shifted(_datetime):
            @classmethod
            def now(cls, tz=None):
                return _datetime.now(tz) + datetime.timedelta(seconds=SHIFT_S)

            @classmethod
            def utcnow(cls):
                return cls.now(datetime.timezone.utc).replace(tzinfo=None)

        datetime.datetime = Shifted
'''


class Line(NamedTuple):
    """Be one line of the journal."""

    event: str
    n: int
    retries: int
    pid: int
    at: float


class Journal:
    """Read what the tasks have noted."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def lines(self) -> list[Line]:
        """Return all lines, the oldest first."""
        if not self._path.exists():
            return []
        parts = (line.split() for line in self._path.read_text().splitlines())
        return [Line(e, int(n), int(r), int(pid), float(at)) for e, n, r, pid, at in parts]

    def order(self, event: str = "start") -> list[int]:
        """Return the numbers of the tasks with this event, in the order in which it happened."""
        return [line.n for line in self.lines() if line.event == event]

    def starts(self) -> Counter[int]:
        """Return how often each task was started."""
        return Counter(self.order("start"))

    def done(self) -> set[int]:
        """Return the numbers of the tasks that came to their end."""
        return set(self.order("done"))

    def clear(self) -> None:
        """Forget everything."""
        self._path.unlink(missing_ok=True)


class Lab:
    """Run a Redis server with workers around it, for as long as the context lasts.

    Args:
        folder: where everything runs and logs.
        lease_s: of every worker and publisher.
        server: keyword arguments of `RedisNode`; None for no server of our own.
        url: the broker that is used instead.
        options: further transport options, of workers and publishers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        lease_s: float = 1.0,
        server: Mapping[str, Any] | None = None,
        url: str = "",
        **options: Any,
    ) -> None:
        self.folder = folder
        self.lease_s = lease_s
        self.options = {"lease_s": lease_s, **options}
        self.journal = Journal(folder / "journal")
        self.nodes: list[WorkerNode | RedisNode] = []
        self._stack = contextlib.ExitStack()
        self._apps: dict[str, Celery] = {}
        self._workers = 0
        (folder / "lab_app.py").write_text(textwrap.dedent(SOURCE))
        (folder / "sitecustomize.py").write_text(textwrap.dedent(CLOCK))
        self.node: RedisNode | None = None
        if not url:
            self.node = self.server(**(server or {}))
            url = self.node.url
        self.url = url

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            for node in self.nodes:
                error.add_note(f"--- {node.name} ({node.status}), last output\n{node.log_tail(25)}")
            shown = "\n".join(map(str, self.journal.lines()[-20:]))
            error.add_note(f"--- journal\n{shown}")
        self.close()

    def close(self) -> None:
        """End every process and connection."""
        for app in self._apps.values():
            app.close()
        # They are the process's: the next application with this URL would get closed ones.
        pools.reset()
        self._stack.close()
        for node in reversed(self.nodes):
            node.teardown()

    # ------------------------------------------------------------ nodes

    def server(self, **options: Any) -> RedisNode:
        """Start another server."""
        name = options.setdefault("name", f"redis-{len(self.nodes) + 1}")
        folder = self.folder / name
        folder.mkdir()
        node = RedisNode(folder, **options)
        self.nodes.append(node)
        try:
            node.start()
        except BaseException:
            node.teardown()
            raise
        return node

    @cached_property
    def client(self) -> redis.Redis:
        """A client to the server."""
        if self.node is not None:
            return self._stack.enter_context(self.node.client())
        return self._stack.enter_context(redis.Redis.from_url(self.url))

    @property
    def queue(self) -> ReliableQueue:
        """The queues, to look at."""
        return ReliableQueue(self.client, prefix=str(self.options.get("global_keyprefix", "")))

    def count(self, queue: str = QUEUE) -> QueueCount:
        """Count a queue's messages."""
        return self.queue.count(queue)

    def settings(self, url: str = "", **conf: Any) -> dict[str, Any]:
        """Return the settings of an application on this broker."""
        url = url or self.url
        is_alias = url.startswith("reliable-")
        is_sentinel = url.startswith("sentinel")
        transport = "cqrs_celery.transport:SentinelTransport" if is_sentinel else TRANSPORT
        return {
            "broker_url": url,
            **({} if is_alias else {"broker_transport": transport}),
            "imports": ["cqrs_celery.transport"],
            "broker_transport_options": self.options,
            "broker_connection_retry_on_startup": True,
            "task_ignore_result": True,
            "task_acks_late": True,
            "task_default_queue": QUEUE,
            "worker_prefetch_multiplier": 1,
            # So that it comes back at once after an outage.
            "broker_connection_max_retries": None,
            **conf,
        }

    def new_worker(
        self,
        name: str = "",
        *,
        pool: str = "solo",
        queues: Sequence[str] = (QUEUE,),
        concurrency: int = 1,
        url: str = "",
        conf: Mapping[str, Any] | None = None,
        arguments: Sequence[str] = ALONE,
        clock_s: float = 0,
        loglevel: str = "INFO",
    ) -> WorkerNode:
        """Prepare a worker; `start` and `wait_ready` are the caller's."""
        self._workers += 1
        settings = self.settings(url, **(conf or {}))
        env = {
            "LAB_FOLDER": str(self.folder),
            "LAB_CONF": json.dumps(settings),
            "LAB_CLOCK_S": str(clock_s),
        }
        worker = WorkerNode(
            self.folder,
            "lab_app",
            name=name or f"worker-{self._workers}",
            pool=pool,
            concurrency=concurrency,
            queues=queues,
            arguments=arguments,
            env=env,
            loglevel=loglevel,
        )
        self.nodes.append(worker)
        return worker

    def worker(self, name: str = "", **options: Any) -> WorkerNode:
        """Start a worker and wait until it is ready."""
        worker = self.new_worker(name, **options)
        worker.start()
        worker.wait_ready()
        return worker

    def workers(self, *workers: WorkerNode) -> None:
        """Start several at once and wait until all are ready."""
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.wait_ready()

    # ------------------------------------------------------------ tasks

    def app(self, url: str = "", **conf: Any) -> Celery:
        """Return an application that sends what the workers run; one for each URL."""
        url = url or self.url
        if url not in self._apps:
            app = Celery("lab-client", set_as_current=False)
            app.conf.update(self.settings(url, **conf))
            self._apps[url] = app
        return self._apps[url]

    def send(
        self, n: int, task: str = "work", *, url: str = "", sequence: str = "", **options: Any
    ) -> str:
        """Send a task with its number and the arguments in `kwargs`; returns its id."""
        kwargs = options.pop("kwargs", {})
        headers = {SEQUENCE_HEADER: sequence} if sequence else {}
        options.setdefault("queue", QUEUE)
        result = self.app(url).send_task(
            task, kwargs={"n": n, **kwargs}, headers=headers, **options
        )
        return str(result.id)

    def open(self, gate: str) -> None:
        """Let every task through that waits at a gate."""
        (self.folder / gate).touch()

    def wait_started(self, *numbers: int, deadline_s: float = 20) -> None:
        """Wait until each of these tasks was started."""
        self._wait("start", set(numbers), deadline_s)

    def wait_done(self, *numbers: int, deadline_s: float = 20) -> None:
        """Wait until each of these tasks came to its end."""
        self._wait("done", set(numbers), deadline_s)

    def _wait(self, event: str, numbers: set[int], deadline_s: float) -> None:
        wait_until(
            lambda: numbers <= set(self.journal.order(event)),
            deadline_s,
            lambda: f"{event} of {sorted(numbers - set(self.journal.order(event)))}",
        )

    def wait_empty(self, *queues: str, deadline_s: float = 20) -> None:
        """Wait until nothing is left of any message: acknowledged, not only done."""
        client = self.client
        key = self.queue.key("msg")
        wait_until(
            lambda: client.hlen(key) == 0, deadline_s, lambda: f"empty: {client.hgetall(key)!r}"
        )

    def waits(self, seconds: float) -> None:
        """Let time pass where nothing shall happen in it."""
        until = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= until, seconds + 5)


@contextlib.contextmanager
def noting(text: str) -> Iterator[None]:
    """Add to an error what was going on."""
    try:
        yield
    except BaseException as error:
        error.add_note(text)
        raise
