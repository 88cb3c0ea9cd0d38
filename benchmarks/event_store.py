"""Measure the event stores beside `eventsourcing`, and beside bare drivers, on the same servers.

    python -m benchmarks.event_store [--json FILE] [--rounds N] [--only NAME] [--short]
        [--peer PYTHON]

PostgreSQL runs here, in a temporary folder, with its own defaults: each commit is forced to the
disk. So are those in SQLite's file. Every writer is a process of its own, with `python -O`, that
has connected and warmed up before anything is measured. A round measures each row by a short part
of each party, one after the other, the order turned about from row to row: a ratio compares
neighbours in time. A row shows the median of the rounds, the least and the most.

- save: commits/s of aggregates that record 1 or 10 events, by 1, 4 and 16 writers; a stream gets 10
  commits. store: the same below the aggregates, beside the bare driver that inserts the same bytes.
- load: aggregates/s of 10, 100, 1,000 events. read all: events/s of everything in order, decoded.
- redis: events/s of appends that three subscriptions get, beside a bare script that writes the same
  bytes from the same client, and beside three `.delay()` calls on stock `redis://`.
- latency: ms from the call that saves an event to the first line of its handler, in an idle worker;
  one event at a time.
- processor time, the client's and the server's, in a table of its own, on Linux: it says what a
  machine without other work would spend, but for the disk.
- `eventsourcing` has its best settings: functions in the database, sections of 500. PYTHON is an
  interpreter that has it; without one, an environment is made for it and thrown away.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks._peer import PEER as THEIRS
from benchmarks._peer import peer_python
from benchmarks._report import OURS, Bar, Report, parse, parser_of, postgres_version, server_version
from cqrs_celery.backends.sql.choosing import open_sql_store
from cqrs_celery.backends.sql.schema import create_schema
from tests.nodes import REPOSITORY, RedisNode, WorkerNode
from tests.postgres import PostgresNode
from tests.waiting import wait_until

BARE, STOCK = "bare", "stock"

#: A group of rows: the processor time that the client and the server have had.
PROCESSOR = "processor time of one, the client's and the server's, µs"

SHORT = {"rounds": 5, "latencies": 150}

#: A row's name: the ratio to whom, and at least what.
_AT_LEAST: dict[str, dict[str, float]] = {
    "postgresql: save, 1 event, 1 writer": {THEIRS: 1.6},
    "postgresql: save, 1 event, 16 writers": {THEIRS: 2.0},
    "postgresql: save, 10 events, 1 writer": {THEIRS: 1.6},
    "postgresql: save, 10 events, 16 writers": {THEIRS: 2.0},
    "postgresql: store, 1 event, 1 writer": {BARE: 0.6},
    "postgresql: store, 1 event, 4 writers": {BARE: 0.6},
    "postgresql: store, 1 event, 16 writers": {BARE: 0.6},
    "postgresql: store, 10 events, 1 writer": {BARE: 0.6},
    "postgresql: store, 10 events, 4 writers": {BARE: 0.6},
    "postgresql: store, 10 events, 16 writers": {BARE: 0.6},
    "postgresql: load 1,000 events": {THEIRS: 3.0},
    "postgresql: read all": {THEIRS: 3.0},
    "sqlite: save, 1 event, 1 writer": {THEIRS: 1.5},
    "sqlite: save, 10 events, 1 writer": {THEIRS: 1.5},
    "redis: append, 3 subscriptions": {BARE: 0.7, STOCK: 6.0},
}

BARS = {
    name: [Bar(">=", value, other) for other, value in bars.items()]
    for name, bars in _AT_LEAST.items()
}

#: Commits, loads or events of one part of a round, by all writers together.
COMMITS = {1: 100, 4: 160, 16: 240}
LOADS = {10: 200, 100: 60, 1_000: 10}
READ = 10_000
APPENDS = 100

#: Events whose latency is measured, of each store; those before them that are not.
LATENCIES, LATENCIES_BEFORE = 300, 20

#: How much of their processor time the client's and the server's processes have had, in us.
Spent = tuple[float, float]


def spent_us(pids: Sequence[int]) -> float:
    """Return the processor time that processes have had; 0 where the system does not tell."""
    spent = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            spent += int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1000
    return spent


def with_children(pid: int) -> list[int]:
    """Return a process and all below it; itself alone where the system does not tell."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += with_children(int(child))
    return found


class Party:
    """Be the processes of one party on one database; as many as ever work at once."""

    def __init__(self, name: str, url: str, python: str, count: int = 1) -> None:
        command = [python, "-O", "-m", "benchmarks._event_store_party", name, url]
        self._options: dict[str, Any] = {
            "cwd": REPOSITORY,
            "env": {**os.environ, "PYTHONWARNINGS": "ignore"},
        }
        if not name.startswith("redis"):
            # Making tables is not safe for several at once.
            subprocess.run([*command, "make"], check=True, **self._options)
        self._processes = [self._popen(command) for _ in range(count)]
        for process in self._processes:
            self._answer(process, "ready")

    def _popen(self, command: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
            **self._options,
        )  # fmt: skip

    def _answer(self, process: subprocess.Popen[str], expected: str = "") -> str:
        assert process.stdout is not None
        said = process.stdout.readline()
        if not said or not said.startswith(expected):
            raise RuntimeError(f"a party of benchmarks said {said!r}")
        return said

    def do(self, what: str, numbers: Sequence[int], count: int, events: int) -> tuple[float, float]:
        """Let one process for each number do its part, all at once.

        Args:
            what: a method of the party.
            numbers: of the parts, by which their streams are named.
            count: how often each does it.
            events: a parameter of it.

        Returns:
            What is done a second, and how much was done.
        """
        working = self._processes[: len(numbers)]
        for process, number in zip(working, numbers, strict=True):
            assert process.stdin is not None
            process.stdin.write(f"{what} {number} {count} {events}\n")
        said = [[float(word) for word in self._answer(one).split()] for one in working]
        took_s = max(ended for _, ended, _ in said) - min(began for began, _, _ in said)
        done = sum(done for *_, done in said)
        return done / took_s, done

    @property
    def pids(self) -> list[int]:
        """The numbers of the processes."""
        return [process.pid for process in self._processes]

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.communicate()


class Benchmark:
    """Be the parties on one engine, and what they took."""

    def __init__(
        self,
        engine: str,
        parties: dict[str, Party],
        report: Report,
        server: PostgresNode | RedisNode | None = None,
    ) -> None:
        self.engine = engine
        self.parties = parties
        self.report = report
        self.spent: dict[str, dict[str, list[Spent]]] = {}
        self._server = with_children(server.pid) if server else []
        self._turn = 0
        self._filled: dict[int, int] = {}

    def append(self, writers: Sequence[int]) -> None:
        """Measure commits: aggregates saved, and the store alone."""
        for count in writers:
            for events in (1, 10):
                for what, word in (("save", "save"), ("append", "store")):
                    name = f"{word}, {_plural(events, 'event')}, {_plural(count, 'writer')}"
                    others = [party for party in self.parties if party != BARE or word == "store"]
                    for party in self._order(others):
                        numbers = [self._number() for _ in range(count)]
                        self._note(name, party, what, numbers, COMMITS[count] // count, events)

    def deliver(self) -> None:
        """Measure appends that subscriptions get."""
        for party in self._order(list(self.parties)):
            name = "append, 3 subscriptions"
            self._note(name, party, "append", [self._number()], APPENDS, 1)

    def load(self) -> None:
        """Measure aggregates loaded."""
        for events, count in LOADS.items():
            number = self._filled.get(events)
            if number is None:
                number = self._filled[events] = self._number()
                for party in self._order([OURS, THEIRS]):
                    self.parties[party].do("fill", [number], 1, events)
            for party in self._order([OURS, THEIRS]):
                self._note(f"load {events:,} events", party, "load", [number], count, events)

    def read(self) -> None:
        """Measure everything read, in order."""
        if not self._filled:
            for party in self._order([OURS, THEIRS]):
                for _ in range(READ // 1_000):
                    self.parties[party].do("fill", [self._number()], 1, 1_000)
            self._filled[0] = 0
        for party in self._order([OURS, THEIRS]):
            self._note("read all", party, "read_all", [0], 1, 0)

    def close(self) -> None:
        """End the parties."""
        for party in self.parties.values():
            party.close()

    def _number(self) -> int:
        self._turn += 1
        return self._turn

    def _order(self, parties: Sequence[str]) -> list[str]:
        there = [party for party in parties if party in self.parties]
        shift = self._number() % len(there)
        return [*there[shift:], *there[:shift]]

    def _note(
        self, name: str, party: str, what: str, numbers: Sequence[int], count: int, events: int
    ) -> None:
        one, name = self.parties[party], f"{self.engine}: {name}"
        before = spent_us(one.pids), spent_us(self._server)
        rate, done = one.do(what, numbers, count, events)
        self.report.note(name, party, rate)
        client, server = spent_us(one.pids) - before[0], spent_us(self._server) - before[1]
        spent = self.spent.setdefault(name, {}).setdefault(party, [])
        spent.append((client / done, server / done))
        if client:
            title = f"{name}: processor time"
            self.report.note(title, party, (client + server) / done, group=PROCESSOR)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


class Latency:
    """Be two workers, of which one has its events in Redis, the other in PostgreSQL."""

    def __init__(self) -> None:
        self._stores: dict[str, tuple[Any, Path]] = {}
        self._workers: list[WorkerNode] = []

    def start(self, directory: Path, redis: RedisNode, postgres: PostgresNode) -> None:
        """Start the workers, and what sends to them."""
        for name, number, store in (
            ("redis", 5, ""),
            ("postgresql", 6, postgres.create_database("latency")),
        ):
            home = directory / f"latency-{name}"
            home.mkdir()
            broker, out = redis.url_of(number), home / "stamps"
            if store:
                with contextlib.closing(open_sql_store(store)) as made:
                    create_schema(made)
            env = {"BENCH_BROKER": broker, "BENCH_STORE": store, "BENCH_OUT": str(out)}
            out.touch()
            sender = subprocess.Popen(
                [sys.executable, "-O", "-m", "benchmarks._event_store_app"],
                cwd=REPOSITORY, env={**os.environ, **env}, text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            self._stores[name] = sender, out
            assert sender.stdout is not None
            sender.stdout.readline()
            worker = WorkerNode(
                home, "benchmarks._event_store_app", name=f"worker-{name}", pool="solo",
                queues=["bench.one"], arguments=["--without-mingle", "--without-gossip"],
                env={**env, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
            worker.start()
            self._workers.append(worker)
            worker.wait_ready()

    def measure(self, report: Report, count: int) -> None:
        """Send events, each when the one before was handled, to one store after the other."""
        from benchmarks._event_store_app import STAMP

        taken: dict[str, list[float]] = {name: [] for name in self._stores}
        for index in range(LATENCIES_BEFORE + count):
            for name, (sender, out) in self._stores.items():
                size = out.stat().st_size
                sender.stdin.write(f"{index}\n")
                wait_until(lambda out=out, size=size: out.stat().st_size > size)  # type: ignore[misc]
                began, handled = STAMP.unpack(out.read_bytes()[-STAMP.size :])
                if index >= LATENCIES_BEFORE:
                    taken[name].append((handled - began) * 1000)
        for name, values in taken.items():
            for percent in (50, 99):
                value = statistics.quantiles(values, n=100)[percent - 1]
                report.note(f"{name}: save to handled, p{percent}, ms", OURS, value)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.teardown()
        for sender, _ in self._stores.values():
            sender.communicate()


def spent_table_of(spent: dict[str, dict[str, list[Spent]]]) -> str:
    """Return the table of processor time as Markdown: medians, the client's + the server's."""
    heads = [
        one for one in (OURS, THEIRS, BARE, STOCK) if any(one in row for row in spent.values())
    ]
    lines = ["| measure | " + " | ".join(heads) + " |", "|" + "---|" * (len(heads) + 1)]
    for name, parties in spent.items():
        cells = []
        for head in heads:
            sides = [statistics.median(side) for side in zip(*parties.get(head, []), strict=True)]
            digits = 0 if sum(sides) >= 20 else 1
            cells.append(" + ".join(f"{side:,.{digits}f}" for side in sides))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@contextlib.contextmanager
def benchmarks(
    directory: Path,
    only: str | None,
    peer: str | None,
    report: Report,
    *,
    postgres: PostgresNode,
    redis: RedisNode,
) -> Iterator[dict[str, Benchmark]]:
    """Start the parties, all of them before anything is measured, and end them."""
    pythons = {OURS: sys.executable, BARE: sys.executable} | ({THEIRS: peer} if peer else {})
    made: dict[str, Benchmark] = {}

    def start(name: str, parties: Sequence[str], urls: Any, count: int = 1) -> None:
        there = [party for party in parties if party in pythons]
        made[name] = Benchmark(
            "postgresql" if name == "reading" else name,
            {party: Party(party, urls(party), pythons[party], count) for party in there},
            report,
            None if name == "sqlite" else postgres,
        )

    try:
        if only in (None, "append"):
            start("postgresql", (OURS, THEIRS, BARE), postgres.create_database, 16)
        if only in (None, "load", "read"):
            # What is read must be events that can be decoded, and their indexes fresh.
            start(
                "reading", (OURS, THEIRS), lambda party: postgres.create_database(f"read_{party}")
            )
        if only in (None, "sqlite"):
            start("sqlite", (OURS, THEIRS, BARE), lambda party: f"sqlite:///{directory}/{party}.db")
        if only in (None, "redis"):
            made["redis"] = Benchmark(
                "redis",
                {
                    party: Party(f"redis-{party}", redis.url_of(number), sys.executable)
                    for number, party in enumerate((OURS, BARE, STOCK), 1)
                },
                report,
                redis,
            )
        yield made
    finally:
        for one in made.values():
            one.close()


def run_round(made: dict[str, Benchmark], report: Report, only: str | None) -> None:
    """Measure everything once that has not failed."""
    parts: dict[str, tuple[str, Callable[[Benchmark], None]]] = {
        "postgresql: save and store": ("postgresql", lambda one: one.append((1, 4, 16))),
        "postgresql: load": ("reading", lambda one: one.load()),
        "postgresql: read": ("reading", lambda one: one.read()),
        "sqlite: save and store": ("sqlite", lambda one: one.append((1,))),
        "sqlite: load": ("sqlite", lambda one: one.load()),
        "redis: append": ("redis", lambda one: one.deliver()),
    }
    skipped = {"load": "postgresql: read", "read": "postgresql: load"}.get(only or "")
    for what, (name, measure) in parts.items():
        if name in made and what != skipped and not report.has_failed(what):
            with report.attempt(what):
                measure(made[name])


def main() -> int:
    """Run the rounds, and report."""
    parser = parser_of("event_store", __doc__, rounds=15)
    parser.add_argument("--only", choices=("append", "load", "read", "sqlite", "redis", "latency"))
    parser.add_argument("--peer", help="a Python that has eventsourcing; one is made without it")
    parser.add_argument("--latencies", type=int, default=LATENCIES, help="events, one at a time")
    options = parse(parser, SHORT)
    only = options.only
    report = Report("event_store", options, BARS)
    spent: dict[str, dict[str, list[Spent]]] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        directory = Path(folder)
        peer = None
        if only not in ("redis", "latency"):
            peer = stack.enter_context(peer_python(options.peer, report))
        for name in ("postgres", "redis"):
            (directory / name).mkdir()
        postgres = PostgresNode(directory / "postgres", settings="max_wal_size = 2GB")
        redis = RedisNode(directory / "redis", appendonly=False)
        for node in (postgres, redis):
            stack.callback(node.teardown)
            node.start()
        redis.wait_ready()
        with redis.client() as client:
            report.versions["server"] = server_version(client)
        report.versions["PostgreSQL"] = postgres_version(postgres)
        with benchmarks(directory, only, peer, report, postgres=postgres, redis=redis) as made:
            for number in range(options.rounds):
                run_round(made, report, only)
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for one in made.values():
                spent |= one.spent
        if only in (None, "latency"):
            latency = Latency()
            stack.callback(latency.close)
            with report.attempt("save to handled"):
                latency.start(directory, redis, postgres)
                latency.measure(report, options.latencies)
    code = report.finish()
    if any(client for row in spent.values() for values in row.values() for client, _ in values):
        print("\nprocessor time of one, µs, the client's + the server's; medians\n")
        print(spent_table_of(spent))
    return code


if __name__ == "__main__":
    sys.exit(main())
