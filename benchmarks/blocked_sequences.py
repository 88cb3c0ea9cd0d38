"""Measure what dead letters that block their sequences cost the messages that flow: nothing.

    python -m benchmarks.blocked_sequences [--rounds 7] [--messages 2000] [--json FILE] [--short]

For each number of blocked sequences there is a server of its own, without persistence, with a solo
worker. In each blocked sequence one event is dead, and two wait behind it. A round measures one
server after the other, the order turned about each time: so many events of 200 other aggregates are
committed while the worker is frozen; then it handles them, and the server counts
(INFO commandstats). The benchmark's own looks are not counted. A ratio is of one round, to the
server on which nothing is blocked. Rows show the median, and the least and most.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._blocked_app import BAD, QUEUE, Happened, Thing, client
from benchmarks._report import OURS, Report, parse, parser_of, server_version
from cqrs_celery import CQRS
from cqrs_celery.queue.reliable_queue import ReliableQueue
from tests.chaos.lab import ALONE
from tests.nodes import RedisNode, WorkerNode
from tests.waiting import wait_until

BLOCKED = (0, 100, 1_000)

AGGREGATES = 200

#: Events of a blocked sequence: the dead one, and those behind it.
EVENTS_EACH = 3

#: Seconds that a worker may need for one measure.
DEADLINE_S = 300

#: What the others are compared with.
NOTHING = "nothing blocked"

SHORT = {"rounds": 3, "messages": 1_000}

#: What is counted, and its title.
MEASURES = {
    "calls": "scripts called per message",
    "commands": "commands per message, those in scripts too",
    "usec": "time in scripts per message, µs",
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


def measure(folder: Path, report: Report, *, rounds: int, messages: int) -> None:
    """Run every round."""
    with ExitStack() as stack:
        benches = [stack.enter_context(running(folder / str(n), n)) for n in BLOCKED]
        report.versions["server"] = server_version(benches[0].client)
        for number in range(-1, rounds):
            turn = number % len(benches)
            with report.attempt("a round"):
                found = {
                    bench.blocked: bench.measure(messages, number)
                    for bench in benches[turn:] + benches[:turn]
                }
                for count in BLOCKED[1:]:
                    for key, title in MEASURES.items():
                        if number >= 0:  # the first round warms up
                            name = f"{title}, {count:,} blocked"
                            report.note(name, OURS, found[count][key])
                            report.note(name, NOTHING, found[0][key])
            if report.failed:
                break
            print(f"round {number + 1} of {rounds}", file=sys.stderr)


def main() -> int:
    """Measure, and report."""
    parser = parser_of("blocked_sequences", __doc__, rounds=7)
    parser.add_argument("--messages", type=int, default=2_000, help="handled in each measure")
    options = parse(parser, SHORT)
    if options.messages < AGGREGATES:
        parser.error(f"--messages: at least {AGGREGATES}")
    report = Report("blocked_sequences", options, {})
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), report, rounds=options.rounds, messages=options.messages)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
