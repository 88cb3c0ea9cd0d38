"""Kill and freeze workers whose subscriptions fail at random, and let a witness judge all of it.

Two hosts with two workers each handle three subscriptions. All the time, up to two workers at once
are killed (-9), with all their processes or one of them, or frozen beyond their lease and then
thawed, or killed. Handlers fail at random, and always for some aggregates. What is right is said by
`tests.chaos.witness`, which asks the library nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests.chaos import post
from tests.chaos.lab import ALONE
from tests.chaos.post import SUBSCRIPTIONS, Line, Moved, Parcel, Scanned, lines_of
from tests.chaos.witness import Disturbance, Witness, read_attempts
from tests.guardian import is_alive, kill_group
from tests.nodes import RedisNode, WorkerNode
from tests.telling import read_said
from tests.waiting import wait_until

WORKERS = ("w1@host-a", "w2@host-a", "w3@host-b", "w4@host-b")

#: Workers of which something is wrong at a time, at most.
AT_A_TIME = 2

#: Events an aggregate has, on the average.
EVENTS_EACH = 100

#: One in so many sequences has an event that always fails.
POISON_ONE_IN = 25

#: Events that are published before they are handled, at most.
AHEAD = 3_000

KINDS = ("killed", "child killed", "orphaned", "frozen", "frozen and killed")

ROWS = (
    "events", "aggregates", "subscriptions", "hosts", "workers", "handlings", "failed",
    "retried in place", "dead letters tried again", "killed with all processes",
    "main process alone killed", "child alone killed", "frozen past their lease, then thawed",
    "frozen, then killed", "leases lost", "messages lost with them", "not started",
    "begun as it was frozen", "repeated after a kill", "repeated after a freeze",
    "sequences begun anew after a kill", "overlaps of a holder past its lease",
    "commits", "commits refused", "retries refused", "blocked sequences",
    "events parked behind them", "lost", "out of order", "unexplained overlaps",
    "unexplained repeats",
)  # fmt: skip

_NAMES = {
    "killed with all processes": "killed",
    "main process alone killed": "orphaned",
    "child alone killed": "child killed",
    "frozen past their lease, then thawed": "frozen",
    "frozen, then killed": "frozen and killed",
}


class Publisher(threading.Thread):
    """Commit events, no faster than told, and remember how many each aggregate has."""

    def __init__(self, cqrs: CQRS, chance: random.Random, *, events: int, rate: float) -> None:
        super().__init__(daemon=True)
        self._cqrs, self._chance, self._rate = cqrs, chance, rate
        self._events = events
        self._names = [f"parcel-{n}" for n in range(max(1, events // EVENTS_EACH))]
        self.counts: Counter[str] = Counter()
        self.handled = 0
        self.is_done = False
        self.error: BaseException | None = None
        self.must_stop = threading.Event()

    def run(self) -> None:
        """Publish all events, each commit of one or two aggregates."""
        try:
            started, total = time.monotonic(), 0
            while total < self._events and not self.must_stop.is_set():
                is_early = total > (time.monotonic() - started) * self._rate
                if is_early or total - self.handled / len(SUBSCRIPTIONS) > AHEAD:
                    self.must_stop.wait(0.02)
                    continue
                total += self._commit(self._events - total)
            self.is_done = True
        except BaseException as error:
            self.error = error
            raise

    def _commit(self, most: int) -> int:
        told: Counter[str] = Counter()
        with self._cqrs.session() as session:
            for name in self._chance.sample(self._names, min(len(self._names), 2)):
                parcel = session.find(Parcel, name)
                if parcel is None:
                    parcel = Parcel(name)
                    session.add(parcel)
                for n in range(min(self._chance.randrange(1, 6), most - told.total())):
                    is_scan = self._chance.random() < 0.5
                    parcel.record(Scanned(by=f"clerk {n}") if is_scan else Moved(to=f"city {n}"))
                    told[name] += 1
        self.counts += told
        return told.total()


class Worker:
    """Be a worker, with what is wrong with it just now."""

    def __init__(self, node: WorkerNode) -> None:
        self.node = node
        #: "starting", "ready", "frozen", "orphaned", or "thawed": it will be ready in a while
        self.state = "starting"
        self.since = 0.0
        self.stopped = 0.0
        self.until = 0.0
        #: when one of its processes was seen for the last time, if they were killed
        self.alive = 0.0
        self.group = 0
        self.is_to_be_killed = False


class Trouble:
    """Disturb workers at random, and keep a log of it."""

    def __init__(self, workers: list[WorkerNode], chance: random.Random, *, lease_s: float,
                 every_s: float, pool: str) -> None:  # fmt: skip
        self._workers = [Worker(node) for node in workers]
        self._chance, self._lease_s, self._every_s = chance, lease_s, every_s
        self._has_children = pool == "prefork"
        self._next_at = time.monotonic() + every_s
        self.log: list[Disturbance] = []

    def step(self) -> None:
        """Go on with what was begun, and begin something new if it is time."""
        now = time.monotonic()
        for worker in self._workers:
            self._go_on(worker, now)
        wrong = sum(worker.state != "ready" for worker in self._workers)
        if now >= self._next_at and wrong < AT_A_TIME:
            self._next_at = now + self._chance.uniform(0.5, 1.5) * self._every_s
            ready = [worker for worker in self._workers if worker.state == "ready"]
            self._disturb(self._chance.choice(ready))

    def end(self) -> None:
        """Wait until all workers are well."""

        def are_well() -> bool:
            for worker in self._workers:
                self._go_on(worker, time.monotonic())
            return all(worker.state == "ready" for worker in self._workers)

        wait_until(are_well, 60, "the workers to be well")

    def _go_on(self, worker: Worker, now: float) -> None:
        node = worker.node
        if worker.state in {"starting", "ready"}:
            assert node.status == "running", f"{node.name} is {node.status}:\n{node.log_tail()}"
        if worker.state == "starting" and node.is_ready():
            worker.state = "ready"
        if worker.state == "orphaned" and is_alive(worker.group):
            worker.alive = now
        if now < worker.until:
            return
        if worker.state == "frozen" and worker.is_to_be_killed:
            self._kill("frozen and killed", worker)
        elif worker.state == "frozen":
            self._note("frozen", worker, time.monotonic())
            node.thaw()
            # So that it has heard of it before it is killed, and its log can tell of it.
            worker.state, worker.until = "thawed", now + self._lease_s
        elif worker.state == "thawed":
            worker.state = "ready"
        elif worker.state == "orphaned":
            self._kill("orphaned", worker)

    def _kill(self, kind: str, worker: Worker) -> None:
        """Kill all that is left of a worker, and start it again."""
        if kind != "orphaned":
            worker.alive = time.monotonic()
        kill_group(worker.group)
        if worker.node.status != "exited":
            worker.node.kill()
        self._note(kind, worker, time.monotonic())
        worker.node.start()
        worker.state = "starting"

    def _disturb(self, worker: Worker) -> None:
        kinds, weights = list(KINDS), [6, 3, 3, 8, 2]
        if not self._has_children:
            kinds, weights = ["killed", "frozen", "frozen and killed"], [6, 8, 2]
        (kind,) = self._chance.choices(kinds, weights)
        worker.group, worker.since = worker.node.pid, time.monotonic()
        if kind == "child killed":
            children = worker.node.children()
            if children:
                pid = self._chance.choice(children)
                now = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                self.log.append(Disturbance(kind, worker.group, now, time.monotonic(), pid))
        elif kind == "killed":
            self._kill(kind, worker)
        elif kind == "orphaned":
            worker.node.kill_main()
            worker.alive = worker.since
            worker.stopped = time.monotonic()
            worker.state = "orphaned"
            worker.until = worker.since + self._chance.uniform(0, 2) * self._lease_s
        else:
            worker.node.freeze()
            worker.stopped = time.monotonic()
            worker.state, worker.is_to_be_killed = "frozen", kind != "frozen"
            worker.until = worker.since + self._chance.uniform(1.5, 3.5) * self._lease_s

    def _note(self, kind: str, worker: Worker, until: float) -> None:
        stopped = worker.stopped if kind != "killed" else 0.0
        alive = worker.alive if kind != "frozen" else 0.0
        self.log.append(
            Disturbance(kind, worker.group, worker.since, until, stopped=stopped, alive=alive)
        )


class Progress:
    """Read in the journal what is done, as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._at: Counter[Path] = Counter()
        self._open: dict[str, tuple[str, int]] = {}
        self.done: dict[str, set[int]] = defaultdict(set)
        #: sequences of which an event has failed for the last time
        self.dead: set[str] = set()
        self._retries: dict[str, int] = {}

    def read(self) -> int:
        """Read what is new; returns how many events were handled, once for each subscription."""
        for path in self._folder.iterdir():
            with path.open("rb") as journal:
                journal.seek(self._at[path])
                new = journal.read()
            new = new[: new.rfind(b"\n") + 1]
            self._at[path] += len(new)
            for line in lines_of(new.decode()):
                self._note(line)
        return sum(map(len, self.done.values()))

    def _note(self, line: Line) -> None:
        if line.what == "start":
            self._open[line.attempt] = f"{line.subscription}:{line.aggregate}", line.version
            self._retries[line.attempt] = line.retries
            return
        name, version = self._open.pop(line.attempt)
        if line.what == "end":
            self.done[name].add(version)
        elif self._retries.pop(line.attempt) == post.MAX_RETRIES:
            self.dead.add(f"{name}:{version}")


def disturb_subscriptions(
    folder: Path, *, rounds: int, seed: int, pool: str = "prefork", lease_s: float = 2.0,
    every_s: float = 2.0, rate: float = 500.0, least: int = 20,
    slow: str = "10:0.1",
) -> dict[str, Any]:  # fmt: skip
    """Publish so many events to subscriptions whose workers are killed and frozen.

    Args:
        folder: where everything runs.
        rounds: events.
        seed: of what is published, what always fails, and what is done to whom.
        pool: of the workers.
        lease_s: seconds of a lease.
        every_s: seconds between two disturbances.
        rate: events published in a second at most.
        least: disturbances, however soon the work is done.
        slow: "n:s", one in n functions takes up to s seconds.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a promise was not kept.
    """
    chance, started_at = random.Random(seed), time.monotonic()
    names = [f"parcel-{n}" for n in range(max(1, rounds // EVENTS_EACH))]
    sequences = [f"{sub}:{name}" for sub in SUBSCRIPTIONS for name in names]
    bad = chance.sample(sequences, max(2, len(sequences) // POISON_ONE_IN))
    poison = {name: chance.randrange(1, EVENTS_EACH // 2) for name in bad}
    (folder / "journal").mkdir()
    (folder / "poison.json").write_text(json.dumps(poison))
    with running(folder, pool=pool, lease_s=lease_s, slow=slow) as (cqrs, node, workers):
        progress = Progress(folder / "journal")
        trouble = Trouble(workers, chance, lease_s=lease_s, every_s=every_s, pool=pool)
        publisher = Publisher(cqrs, random.Random(seed + 1), events=rounds, rate=rate)
        publisher.start()

        def left() -> dict[str, tuple[int, int]]:
            found = {}
            for name in sequences:
                count = publisher.counts[name.partition(":")[2]]
                due = min(count, poison.get(name, count + 1) - 1)
                if due > len(progress.done[name]):
                    found[name] = len(progress.done[name]), due
            return found

        def is_over() -> bool:
            assert publisher.error is None, repr(publisher.error)
            trouble.step()
            publisher.handled = progress.read()
            return publisher.is_done and len(trouble.log) >= least and not left()

        try:
            wait_until(is_over, 120 + rounds / 40, lambda: f"the end of {left()}")
        finally:
            publisher.must_stop.set()
            publisher.join()
        trouble.end()
        counts = dict(publisher.counts)
        parked = {name: counts[name.partition(":")[2]] - at + 1 for name, at in poison.items()}
        parked = {name: count for name, count in parked.items() if count > 0}
        wait_for_rest(node, progress, poison, parked)
        for worker in workers:
            worker.kill("SIGTERM")
        for worker in workers:
            worker.stop(60)
        check_letters(node, poison, parked)
        booked = read_books(cqrs)
        said = read_said(*(worker.logs() for worker in workers))
        (folder / "facts.json").write_text(json.dumps([trouble.log, counts, booked]))
        witness = Witness(
            read_attempts(folder / "journal"), trouble.log, said, counts, poison, booked, lease_s
        )
        seen = witness.judge()
    seen.update({
        "events": sum(counts.values()), "aggregates": len(counts),
        "subscriptions": len(SUBSCRIPTIONS), "workers": len(WORKERS), "hosts": 2,
    })  # fmt: skip
    rows = {name: seen[_NAMES.get(name, name)] for name in ROWS}
    return {"pool": pool} | rows | {"seconds": round(time.monotonic() - started_at)}


def disturb_threads(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with workers whose pool is of threads."""
    return disturb_subscriptions(folder, rounds=rounds, seed=seed, pool="threads", rate=100)


def disturb_solo(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with workers without a pool."""
    return disturb_subscriptions(folder, rounds=rounds, seed=seed, pool="solo", rate=100)


def disturb_gevent(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with workers whose pool is of greenlets."""
    return disturb_subscriptions(folder, rounds=rounds, seed=seed, pool="gevent", rate=100)


def wait_for_rest(
    node: RedisNode, progress: Progress, poison: dict[str, int], parked: dict[str, int]
) -> None:
    """Wait until nothing is left but what is dead, and parked behind it."""
    with node.client() as client:

        def is_rest() -> bool:
            progress.read()
            is_dead = all(f"{name}:{poison[name]}" in progress.dead for name in parked)
            return is_dead and client.hlen("cq:msg") == sum(parked.values())

        wait_until(is_rest, 60, lambda: f"{client.hlen('cq:msg')} messages to be {parked}")


def check_letters(node: RedisNode, poison: dict[str, int], parked: dict[str, int]) -> None:
    """Check that what an operator sees is dead is what always fails, all of it and no more."""
    found = {}
    with node.client() as client:
        queue = ReliableQueue(client)
        for subscription in SUBSCRIPTIONS:
            for letter in queue.letters.all(subscription):
                event = json.loads(letter.payload.partition(b"\n")[2] or letter.body)[0][0]
                name = f"{subscription}:{event['stream'].rpartition(':')[2]}"
                assert name not in found, f"two letters of {name}"
                found[name] = event["version"]
            count = queue.count(subscription)
            mine = sum(n for name, n in parked.items() if name.startswith(f"{subscription}:"))
            assert count.blocked + count.retrying + count.in_sequences >= mine > -1, count
    assert found == {name: poison[name] for name in parked}, f"{found}, expected {parked}"


def read_books(cqrs: CQRS) -> dict[str, list[tuple[int, str]]]:
    """Return what handlers have committed, by aggregate, in the order of the commits."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    position = 0
    while events := cqrs.store.read_all(after_position=position, limit=1000):
        for stored in events:
            if stored.event.type == "post.booked":
                data = json.loads(stored.event.data)
                found[stored.stream.aggregate_id].append((data["version"], data["attempt"]))
        position = events[-1].global_position
    return found


@contextlib.contextmanager
def running(
    folder: Path, *, pool: str, lease_s: float, slow: str
) -> Iterator[tuple[CQRS, RedisNode, list[WorkerNode]]]:
    """Run a server, four workers on two hosts, and a client, as long as the block lasts."""
    (folder / "redis").mkdir()
    node = RedisNode(folder / "redis")
    options = {"lease_s": lease_s, "max_deliveries": 1_000}
    workers: list[WorkerNode] = []
    try:
        node.start()
        conf = {"url": node.url, "broker_transport_options": options}
        for name in WORKERS:
            host = name.partition("@")[2]
            directory = folder / name.replace("@", "-")
            directory.mkdir()
            env = {
                "POST_FOLDER": str(folder),
                "POST_CONF": json.dumps(conf),
                "POST_HOST": host,
                "POST_SLOW": slow,
            }
            workers.append(
                WorkerNode(
                    directory, "tests.chaos.post", name=name.partition("@")[0], pool=pool,
                    concurrency=2, hostname=name, arguments=ALONE, env=env, loglevel="INFO",
                )
            )  # fmt: skip
            workers[-1].start()
        for worker in workers:
            worker.wait_ready()
        cqrs = post.client(node.url, broker_transport_options=options)
        yield cqrs, node, workers
        cqrs.app.close()
    except BaseException as error:
        for worker in workers:
            error.add_note(f"--- {worker.name} ({worker.status})\n{worker.log_tail(8)}")
        raise
    finally:
        for worker in workers:
            worker.teardown()
        node.teardown()
