"""Measure what one queue costs beside much else: queues, sequences, delayed messages, letters.

    python -m benchmarks.growth [--rounds 5] [--calls 500] [--size 1.0] [--json FILE] [--short]
    python -m benchmarks.growth --before FILE       beside what an earlier commit wrote by --json

For each of these there is a server of its own, without persistence, and one on which nothing is:

    10,000 other queues, each with a message that is ready and one that is delayed
    1,000,000 sequences of the queue itself, held by another consumer
    100,000 delayed messages of the queue itself
    20,000 dead letters of the queue itself
    5,000 consumers that wait for a wake-up from the queue

`--size` takes that part of each. A round does each operation on
one server after the other. Of each call the commands are counted, those in scripts too, and the
server's time in scripts, or in commands where a call runs no script (INFO commandstats). A ratio
is of one round, to the server on which nothing is; it may be 2 at most. Of an earlier commit, whose
form of the queue this file can use too, the median is shown.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks._report import OURS, Bar, Report, parse, parser_of, server_version
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination, LetterPolicy, Publish, Taken, ack, bury
from tests.nodes import RedisNode

QUEUE, CONSUMER, HOLDER, TOPIC = "orders", "anna", "holder", "placed"
LEASE_MS = DELAY_MS = 36_000_000
ALONE, BEFORE = "alone", "before"
MOST = 2.0

#: How much of each there is in the long form.
SIZES = {
    "other queues": 10_000, "sequences": 1_000_000, "delayed messages": 100_000,
    "dead letters": 20_000, "idle consumers": 5_000,
}  # fmt: skip

SHORT = {"rounds": 3, "calls": 500}

#: What is measured of each operation, and its title.
MEASURES = {"usec": "time in scripts, µs", "calls": "commands, those in scripts too"}

#: Rounds that do not count: the server's tables, which have just grown, are still being moved.
WARM_UP = 6
#: Messages published, taken and settled in one round trip while a server is filled.
CHUNK = 500
#: Deliveries of a take that is measured.
TAKE = 10
#: Seconds for the calls of one operation; a slow one is called less often, but this often.
BUDGET_S, LEAST_CALLS = 2.0, 3


def measure_of(operation: str, kind: str, title: str) -> str:
    """Return the name of a row."""
    return f"{operation}, {kind}: {title}"


OPERATIONS = (
    "publish", "publish to a topic with a capacity", "publish in a sequence", "take 10",
    "settle 10", "one message at a time", "beat", "count", "consume", "recover nothing",
)  # fmt: skip

BARS: dict[str, list[Bar]] = {
    measure_of(operation, kind, title): [Bar("<=", MOST, ALONE)]
    for operation in OPERATIONS
    for kind in SIZES
    for title in MEASURES.values()
}


class Bench:
    """A server with much of one kind, or with nothing."""

    def __init__(self, client: Any, calls: int) -> None:
        self.client = client
        self.queue = ReliableQueue(client)
        self._calls = calls
        self._sent = 0
        self._idle: list[str] = []
        # A wake-up that nobody hears would go on to the next consumer.
        self._ears: Any = client.pubsub(ignore_subscribe_messages=True)
        self._ears.psubscribe("*wake*")
        self.join(CONSUMER)
        self.queue.letters.set_policy(QUEUE, LetterPolicy(first_redrive_ms=DELAY_MS))
        self.queue.subscribe("on_placed", [TOPIC], queue=QUEUE, pieces=["", "", "", "", ""])

    def join(self, name: str) -> None:
        """Register a consumer."""
        self.queue.beat(name, LEASE_MS, register=True)
        self.queue.consume(name, [QUEUE])

    # ------------------------------------------------------------ what is beside

    def fill(self, kind: str, count: int) -> None:
        """Put so much of a kind there."""
        {
            "other queues": self._fill_queues, "sequences": self._fill_sequences,
            "delayed messages": self._fill_delayed, "dead letters": self._fill_letters,
            "idle consumers": self._fill_idle,
        }[kind](count)  # fmt: skip

    def _publish_all(self, publishes: Iterator[Publish]) -> None:
        chunk: list[Publish] = []
        for one in publishes:
            chunk.append(one)
            if len(chunk) == CHUNK:
                self.queue.publish_many(chunk)
                chunk = []
        if chunk:
            self.queue.publish_many(chunk)

    def _fill_queues(self, count: int) -> None:
        for number in range(count):
            self.queue.declare(f"other-{number}")
        for delay_ms in (0, DELAY_MS):
            self._publish_all(
                Publish([Destination(f"other-{n}", "{}")], delay_ms=delay_ms) for n in range(count)
            )

    def _fill_sequences(self, count: int) -> None:
        self.join(HOLDER)
        for start in range(0, count, CHUNK):
            numbers = range(start, min(start + CHUNK, count))
            self._publish_all(Publish([Destination(QUEUE, "{}", f"held-{n}")]) for n in numbers)
            assert len(self._take(HOLDER, len(numbers))) == len(numbers)

    def _fill_delayed(self, count: int) -> None:
        self._publish_all(
            Publish([Destination(QUEUE, "{}")], delay_ms=DELAY_MS + n) for n in range(count)
        )

    def _fill_letters(self, count: int) -> None:
        for start in range(0, count, CHUNK):
            number = min(CHUNK, count - start)
            self._publish_all(Publish([Destination(QUEUE, "{}")]) for _ in range(number))
            taken = self._take(CONSUMER, number)
            assert len(taken) == number
            self.queue.settle_and_take(CONSUMER, [bury(t.id, t.fence, "{}") for t in taken])

    def _fill_idle(self, count: int) -> None:
        self._idle = [f"idle-{number}" for number in range(count)]
        for name in self._idle:
            self.join(name)
        self.rest()

    def rest(self) -> None:
        """Let everybody who was woken wait again."""
        while self._ears.get_message():
            pass
        for name in self._idle:
            self._take(name, 1)

    def _take(self, name: str, count: int) -> list[Taken]:
        found: list[Taken] = []
        while len(found) < count:
            answer = self.queue.settle_and_take(name, queues=[QUEUE], count=count - len(found))
            if not answer.taken:
                break
            found += answer.taken
        return found

    # ------------------------------------------------------------ what is measured

    def measure(self) -> dict[str, dict[str, float]]:
        """Do every operation; returns what the server has counted for one call of each."""
        found = {}
        publishes = (self.publish, self.publish_to_topic, self.publish_in_sequence)
        for name, publish in zip(OPERATIONS, publishes, strict=False):
            found[name] = self._counted(publish)
        taken: list[list[Taken]] = []
        found["take 10"] = self._counted(lambda: taken.append(self._take_some()), least=True)
        full = [one for one in taken if one]
        settling = iter(full)
        found["settle 10"] = self._counted(lambda: self._settle(next(settling)), most=len(full))
        for one in settling:
            self._settle(one)
        while rest := self._take_some():
            self._settle(rest)
        found["one message at a time"] = self._counted(self.one_at_a_time)
        found["beat"] = self._counted(lambda: self.queue.beat(CONSUMER, LEASE_MS))
        found["count"] = self._counted(lambda: self.queue.count(QUEUE))
        found["consume"] = self._counted(lambda: self.queue.consume(CONSUMER, [QUEUE]))
        found["recover nothing"] = self._counted(self.queue.recover)
        return found

    def publish(self) -> None:
        self.queue.publish([Destination(QUEUE, "{}")])

    def publish_in_sequence(self) -> None:
        self._sent += 1
        self.queue.publish([Destination(QUEUE, "{}", f"own-{self._sent}")])

    def publish_to_topic(self) -> None:
        answer = self.queue.publish_topic(
            TOPIC, "{}", message_id="m", root_id="r", capacity=100_000_000
        )
        assert answer == 1, answer

    def _take_some(self) -> list[Taken]:
        return list(self.queue.settle_and_take(CONSUMER, queues=[QUEUE], count=TAKE).taken)

    def _settle(self, taken: Sequence[Taken]) -> None:
        self.queue.settle_and_take(CONSUMER, [ack(one.id, one.fence) for one in taken])

    def one_at_a_time(self) -> None:
        self.publish()
        self._settle(self._take_some())

    def _counted(
        self, action: Callable[[], object], *, most: int = 0, least: bool = False
    ) -> dict[str, float]:
        """Return the commands and the microseconds of one call.

        Args:
            action: the call.
            most: how often at most; 0 for as often as was asked for.
            least: a tenth as often.
        """
        calls = most or (self._calls // TAKE if least else self._calls)
        self.client.config_resetstat()
        until, done = time.monotonic() + BUDGET_S, 0
        while done < calls and (done < LEAST_CALLS or time.monotonic() < until):
            action()
            done += 1
        stats: Mapping[str, Mapping[str, float]] = self.client.info("commandstats")
        own = {"cmdstat_config|resetstat", "cmdstat_info"}
        commands = sum(stat["calls"] for name, stat in stats.items() if name not in own)
        script = stats.get("cmdstat_evalsha")
        spent = [script] if script else [one for name, one in stats.items() if name not in own]
        return {"usec": sum(one["usec"] for one in spent) / done, "calls": commands / done}


@contextmanager
def running(folder: Path, calls: int, kind: str = "", count: int = 0) -> Iterator[Bench]:
    """Run a server, filled, as long as the block lasts."""
    folder.mkdir()
    node = RedisNode(folder, appendonly=False)
    try:
        node.start()
        with node.client(socket_timeout=None) as client:
            bench = Bench(client, calls)
            if kind:
                began = time.monotonic()
                bench.fill(kind, count)
                print(f"{count:,} {kind}: {time.monotonic() - began:.0f} s", file=sys.stderr)
            yield bench
    finally:
        node.teardown()


def measure_kind(report: Report, folder: Path, kind: str, options: Any) -> None:
    """Run every round on a server with much of a kind, and on one with nothing."""
    count = max(1, round(SIZES[kind] * options.size))
    title = f"beside {count:,} {kind}"
    with ExitStack() as stack:
        alone = stack.enter_context(running(folder / "alone", options.calls))
        beside = stack.enter_context(running(folder / "beside", options.calls, kind, count))
        report.versions["server"] = server_version(alone.client)
        benches = [(ALONE, alone), (OURS, beside)]
        for number in range(-WARM_UP, options.rounds):
            benches.reverse()
            found = {party: bench.measure() for party, bench in benches}
            beside.rest()
            if number < 0:
                continue
            for operation in OPERATIONS:
                for key, what in MEASURES.items():
                    for party in (OURS, ALONE):
                        name = measure_of(operation, kind, what)
                        report.note(name, party, found[party][operation][key], group=title)


def rows_of(kind: str) -> Iterator[str]:
    """Yield the names of the rows of a kind."""
    for operation in OPERATIONS:
        for title in MEASURES.values():
            yield measure_of(operation, kind, title)


def medians_of(path: Path) -> dict[str, float]:
    """Return what an earlier run has measured beside much else, by the row's name."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["measure"]: row[OURS]["median"] for row in rows}


def main() -> int:
    """Measure, and report."""
    parser = parser_of("growth", __doc__, rounds=5)
    parser.add_argument("--calls", type=int, default=500, help="of each operation in a round")
    parser.add_argument("--size", type=float, default=1.0, help="the part of everything")
    parser.add_argument("--only", choices=[*SIZES], help="beside this alone")
    parser.add_argument("--before", type=Path, metavar="FILE", help="of an earlier commit")
    options = parse(parser, SHORT)
    report = Report("growth", options, BARS)
    before = medians_of(options.before) if options.before else {}
    for kind in [options.only] if options.only else SIZES:
        with tempfile.TemporaryDirectory() as folder, report.attempt(kind):
            measure_kind(report, Path(folder), kind, options)
            for name in rows_of(kind):
                if name in before:
                    for _ in range(options.rounds):
                        report.note(name, BEFORE, before[name])
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
