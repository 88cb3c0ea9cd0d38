"""Measure what dead letters that block their sequences cost the messages that flow: nothing.

    python -m benchmarks.blocked_sequences [--rounds 7] [--messages 2000] [--json FILE]

For each number of blocked sequences there is a server of its own, without persistence, with a solo
worker. In each blocked sequence one event is dead, and two wait behind it. A round measures one
server after the other, the order turned about each time: so many events of 200 other aggregates are
committed while the worker is frozen; then it handles them, and the server counts
(INFO commandstats). The benchmark's own looks are not counted. A ratio is of one round, to the
server on which nothing is blocked. Rows show the median, and the least and most.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import celery
import redis

from benchmarks._blocked_app import BAD, QUEUE, Happened, Thing, client
from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests.chaos.__main__ import server_version
from tests.chaos.lab import ALONE
from tests.nodes import RedisNode, WorkerNode
from tests.waiting import wait_until

BLOCKED = (0, 100, 1_000)

AGGREGATES = 200

#: Events of a blocked sequence: the dead one, and those behind it.
EVENTS_EACH = 3

#: Seconds that a worker may need for one measure.
DEADLINE_S = 300

#: What is counted, and its title.
MEASURES = {
    "calls": "scripts called per message",
    "usec": "time in scripts per message, µs",
    "commands": "commands per message, those in scripts too",
}


@dataclass
class Bench:
    """Be a server with so many blocked sequences, and its worker, frozen between two measures."""

    blocked: int
    node: RedisNode
    worker: WorkerNode
    cqrs: CQRS
    client: Any

    def block(self) -> None:
        """Let the sequences be blocked."""
        names = [f"{BAD}{n}" for n in range(self.blocked)]
        for start in range(0, len(names), 50):
            with self.cqrs.session() as session:
                for name in names[start : start + 50]:
                    thing = Thing(name)
                    session.add(thing)
                    for number in range(EVENTS_EACH):
                        thing.record(Happened(number=number))
        queue, rest = ReliableQueue(self.client), self.blocked * EVENTS_EACH
        wait_until(lambda: queue.count(QUEUE).blocked == rest, DEADLINE_S, "the dead letters")
        assert queue.count(QUEUE).dead == self.blocked

    def commit(self, count: int, number: int) -> None:
        """Commit so many events of aggregates that nothing is wrong with."""
        each = count // AGGREGATES
        for start in range(0, AGGREGATES, 20):
            with self.cqrs.session() as session:
                for n in range(start, start + 20):
                    thing = Thing(f"good-{number}-{n}")
                    session.add(thing)
                    for event in range(each):
                        thing.record(Happened(number=event))

    def measure(self, count: int, number: int) -> dict[str, float]:
        """Let the worker handle so many events; returns what the server has counted for each."""
        self.commit(count, number)
        rest = self.blocked * EVENTS_EACH
        assert self.client.hlen("cq:msg") == rest + count // AGGREGATES * AGGREGATES
        self.client.config_resetstat()
        self.worker.thaw()
        wait_until(lambda: self.client.hlen("cq:msg") == rest, DEADLINE_S, "all to be handled")
        stats: dict[str, dict[str, float]] = self.client.info("commandstats")
        self.worker.freeze()
        done = count // AGGREGATES * AGGREGATES
        ours = {"cmdstat_hlen", "cmdstat_config|resetstat", "cmdstat_info"}
        script = stats["cmdstat_evalsha"]
        commands = sum(stat["calls"] for name, stat in stats.items() if name not in ours)
        return {
            "calls": script["calls"] / done,
            "usec": script["usec"] / done,
            "commands": commands / done,
        }


@contextmanager
def running(folder: Path, blocked: int) -> Iterator[Bench]:
    """Run a server and its worker as long as the block lasts."""
    folder.mkdir()
    node = RedisNode(folder, appendonly=False)
    worker: WorkerNode | None = None
    try:
        node.start()
        worker = WorkerNode(
            folder, "benchmarks._blocked_app", pool="solo", arguments=ALONE,
            env={"BLOCKED_URL": node.url},
        )  # fmt: skip
        worker.start()
        worker.wait_ready()
        cqrs = client(node.url)
        with node.client(socket_timeout=None) as redis_client:
            bench = Bench(blocked, node, worker, cqrs, redis_client)
            bench.block()
            worker.freeze()
            yield bench
        cqrs.app.close()
    finally:
        if worker is not None:
            worker.teardown()
        node.teardown()


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the least and the most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def shown(value: dict[str, float], digits: int = 2) -> str:
    """Return a spread as text."""
    median, least, most = (f"{value[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} ({least}-{most})"


def measure(
    folder: Path, *, rounds: int, messages: int, blocked: tuple[int, ...] = BLOCKED
) -> dict[str, Any]:
    """Run every round; returns facts and rows."""
    found: dict[int, dict[str, list[float]]] = {n: {m: [] for m in MEASURES} for n in blocked}
    with ExitStack() as stack:
        benches = [stack.enter_context(running(folder / str(n), n)) for n in blocked]
        for number in range(-1, rounds):
            turn = number % len(benches)
            for bench in benches[turn:] + benches[:turn]:
                for name, value in bench.measure(messages, number).items():
                    if number >= 0:  # the first round warms up
                        found[bench.blocked][name].append(value)
        version = server_version(benches[0].client)
    rows = []
    for name, title in MEASURES.items():
        row: dict[str, Any] = {"measure": title}
        for n in blocked:
            values = found[n][name]
            pairs = zip(values, found[blocked[0]][name], strict=True)
            row[str(n)] = spread(values)
            if n != blocked[0]:
                row[f"{n}, ratio"] = spread([one / other for one, other in pairs])
        rows.append(row)
    return {
        "facts": {
            "server": version,
            "Celery, redis-py": f"{celery.__version__}, {redis.__version__}",
            "Python": platform.python_version(),
            "rounds": rounds,
            "messages a round": messages // AGGREGATES * AGGREGATES,
        },
        "rows": rows,
        "samples": {str(n): samples for n, samples in found.items()},
    }


def print_result(result: dict[str, Any]) -> None:
    """Print facts and rows as tables in markdown."""
    print("| | |\n|---|---|")
    for name, value in result["facts"].items():
        print(f"| {name} | {value} |")
    heads = [key for key in result["rows"][0] if key != "measure"]
    titles = [f"{head} blocked" if head.isdigit() else "ratio" for head in heads]
    print(f"\n| measure | {' | '.join(titles)} |\n|{'---|' * (len(heads) + 1)}")
    for row in result["rows"]:
        print(f"| {row['measure']} | {' | '.join(shown(row[head]) for head in heads)} |")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.blocked_sequences",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--messages", type=int, default=2_000, help="handled in each measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    if options.messages < AGGREGATES:
        parser.error(f"--messages: at least {AGGREGATES}")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), rounds=options.rounds, messages=options.messages)
    print_result(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
