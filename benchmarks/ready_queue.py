"""Measure the two shapes that a ready queue can have in Redis, at full depth, side by side.

    python -m benchmarks.ready_queue [--messages 1000000] [--rounds 5] [--json FILE] [--short]

LIST: ids, enqueued by LPUSH, taken by RPOP with a count, under the queue's own key name.
ZSET: member id, score = place in the queue, taken by ZPOPMIN with a count.

Each round builds both shapes anew, then runs each operation on one and on the other at once, so
that a ratio compares neighbours in time. Two times are kept: what the server spent inside the
script (INFO commandstats), and the round trip that a client saw. Beside them: the memory of
payloads in one hash, and of the two ways to remember publish ids.

It starts a server of its own (see `tests.nodes.find_server`), without persistence, and stops it.
"""

from __future__ import annotations

import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis

from benchmarks._report import OURS, Report, parse, parser_of, server_version
from tests.nodes import RedisNode

#: Ids beyond 32 bits, as a broker that has run for years hands out: the larger entry in a LIST.
FIRST_ID = 10_000_000_000
#: Ids per call while a queue is filled.
CHUNK = 1_000
#: Calls of each operation per round, and ids per take and put back.
CALLS = 1_000
TAKE = 10
#: Ids that two consumers hold alternately in the worst case of a put back.
HELD = 500
PAYLOAD_BYTES = 700
DEDUP_MS = 3_600_000

#: Deleting happens at once, on every server: Valkey would free memory behind our back.
SETTINGS = {"lazyfree-lazy-user-del": "no", "lazyfree-lazy-user-flush": "no"}

LIST_KEY, ZSET_KEY = "{cqrs}celery", "{cqrs}celery:z"

ENQUEUE = {
    "LIST": "return redis.call('LPUSH', KEYS[1], ARGV[1])",
    "ZSET": "return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1])",
}
FILL = {
    "LIST": "for id = ARGV[1], ARGV[2] do redis.call('LPUSH', KEYS[1], id) end",
    "ZSET": "for id = ARGV[1], ARGV[2] do redis.call('ZADD', KEYS[1], id, id) end",
}
TAKE_SOME = {
    "LIST": "return redis.call('RPOP', KEYS[1], ARGV[1])",
    "ZSET": """
        local found, ids = redis.call('ZPOPMIN', KEYS[1], ARGV[1]), {}
        for i = 1, #found, 2 do ids[#ids + 1] = found[i] end
        return ids""",
}
PUT_BACK = {
    # Each id goes before the first younger one that stands at the head.
    "LIST": """
        local line, youngest = {}, 0
        for i, id in ipairs(ARGV) do
          line[i] = tonumber(id)
          youngest = math.max(youngest, line[i])
        end
        local older
        repeat
          local heads = redis.call('LRANGE', KEYS[1], -#line, -1)
          older = 0
          for i = #heads, 1, -1 do
            local id = tonumber(heads[i])
            if id > youngest then break end
            older = older + 1
            line[#line + 1] = id
          end
          if older > 0 then redis.call('RPOP', KEYS[1], older) end
        until older < #heads
        table.sort(line)
        for i = 1, #line / 2 do line[i], line[#line + 1 - i] = line[#line + 1 - i], line[i] end
        for i = 1, #line, 1000 do
          redis.call('RPUSH', KEYS[1], unpack(line, i, math.min(i + 999, #line)))
        end""",
    "ZSET": """
        local pairs = {}
        for i, id in ipairs(ARGV) do
          pairs[2 * i - 1], pairs[2 * i] = id, id
        end
        redis.call('ZADD', KEYS[1], unpack(pairs))""",
}
LENGTH = {
    "LIST": "return redis.call('LLEN', KEYS[1])",
    "ZSET": "return redis.call('ZCARD', KEYS[1])",
}
STORE = """
    for i = 2, #ARGV do
      redis.call('HSET', KEYS[1], ARGV[1] + i - 2, ARGV[i])
    end"""
REMEMBER = {
    "key": """
        for i = 2, #ARGV do redis.call('SET', KEYS[1] .. ARGV[i], 1, 'NX', 'PX', ARGV[1]) end""",
    "set": "for i = 2, #ARGV do redis.call('SADD', KEYS[1], ARGV[i]) end",
}
SHAPES = {"LIST": LIST_KEY, "ZSET": ZSET_KEY}

#: Those that this package has.
CHOSEN = {"LIST", "HASH", "key"}

SHORT = {"rounds": 3, "messages": 100_000}


class Benchmark:
    """One run: its server, its scripts, and what it has measured so far."""

    def __init__(self, client: redis.Redis, messages: int, report: Report) -> None:
        """Keep the client of an empty server and the depth to measure at."""
        self.client: Any = client
        self.messages = messages
        self.report = report

    def note(self, measure: str, shape: str, value: float) -> None:
        """Add a sample of one measure for one shape."""
        self.report.note(measure, OURS if shape in CHOSEN else shape, value)

    def run_round(self) -> None:
        """Measure everything once, on an empty server."""
        self.client.flushall()
        for shape, key in SHAPES.items():
            self.measure_fill(shape, key)
        for name, operation in self.operations():
            for shape, key in SHAPES.items():
                self.measure_calls(name, shape, operation(shape, key))
        for shape, key in SHAPES.items():
            expected = self.messages + CALLS
            found = self.client.eval(LENGTH[shape], 1, key)
            assert found == expected, f"{shape} holds {found} ids, expected {expected}"
        self.assert_same_order()
        self.client.flushall()
        self.measure_payloads()
        for shape in REMEMBER:
            self.client.flushall()
            self.measure_dedup(shape)

    def measure_fill(self, shape: str, key: str) -> None:
        """Fill one queue to the full depth; note its memory and the time per id."""
        fill = self.client.register_script(FILL[shape])
        before, started = self.used_memory(), time.perf_counter()
        for first in range(FIRST_ID, FIRST_ID + self.messages, CHUNK):
            last = min(first + CHUNK, FIRST_ID + self.messages) - 1
            fill(keys=[key], args=[first, last])
        self.note(f"fill by {CHUNK:,}: µs an id", shape, _since(started) * 1e6 / self.messages)
        self.note("memory, bytes an id (used_memory)", shape, self.grown(before))
        usage = self.client.memory_usage(key, samples=0)
        self.note("memory, bytes an id (MEMORY USAGE)", shape, usage / self.messages)

    def operations(self) -> Iterator[tuple[str, Callable[[str, str], list[Callable[[], Any]]]]]:
        """Give each operation: its name, and what makes its calls for a shape."""
        register = {
            name: {shape: self.client.register_script(text) for shape, text in scripts.items()}
            for name, scripts in {
                "enqueue": ENQUEUE,
                "take": TAKE_SOME,
                "put back": PUT_BACK,
                "length": LENGTH,
            }.items()
        }
        first = FIRST_ID + self.messages
        taken: dict[str, list[list[bytes]]] = {"LIST": [], "ZSET": []}

        def bind(name: str, shape: str, key: str, args: list[Any]) -> Callable[[], Any]:
            return lambda: register[name][shape](keys=[key], args=args)

        def take(shape: str, key: str, count: int) -> Callable[[], Any]:
            return lambda: taken[shape].append(register["take"][shape](keys=[key], args=[count]))

        def newest_first(shape: str, key: str) -> list[Callable[[], Any]]:
            batches, taken[shape] = taken[shape], []
            return [bind("put back", shape, key, ids) for ids in reversed(batches)]

        def interleaved(shape: str, key: str) -> list[Callable[[], Any]]:
            ids = register["take"][shape](keys=[key], args=[HELD])
            register["put back"][shape](keys=[key], args=ids[::2])
            return [bind("put back", shape, key, ids[1::2])]

        yield (
            "enqueue 1",
            lambda s, k: [bind("enqueue", s, k, [i]) for i in range(first, first + CALLS)],
        )
        yield f"take {TAKE}", lambda s, k: [take(s, k, TAKE) for _ in range(CALLS)]
        yield f"put back {TAKE} at the head", newest_first
        yield f"put back {HELD // 2} between {HELD // 2} others", interleaved
        yield "length", lambda s, k: [bind("length", s, k, []) for _ in range(CALLS)]

    def measure_calls(self, name: str, shape: str, calls: list[Callable[[], Any]]) -> None:
        """Run calls of one operation; note the server's time and the round trip, per call."""
        self.client.config_resetstat()
        started = time.perf_counter()
        for call in calls:
            call()
        spent = _since(started)
        stats = self.client.info("commandstats")["cmdstat_evalsha"]
        self.note(f"{name}: server, µs", shape, stats["usec"] / len(calls))
        self.note(f"{name}: round trip, µs", shape, spent * 1e6 / len(calls))

    def assert_same_order(self) -> None:
        """Check that both shapes hold the same ids in the same order after all operations."""
        count = min(self.messages, 2 * TAKE * CALLS)
        of_list = self.client.lrange(LIST_KEY, -count, -1)[::-1]
        of_zset = self.client.zrange(ZSET_KEY, 0, count - 1)
        assert of_list == of_zset, "the two shapes disagree about the order of their heads"

    def measure_payloads(self) -> None:
        """Store payloads in one hash; note the memory beyond the payload itself."""
        store = self.client.register_script(STORE)
        before = self.used_memory()
        payload = "x" * PAYLOAD_BYTES
        for first in range(FIRST_ID, FIRST_ID + self.messages, CHUNK):
            count = min(CHUNK, FIRST_ID + self.messages - first)
            store(keys=["{cqrs}cq:msg"], args=[first, *[payload] * count])
        self.note(f"memory, bytes a payload of {PAYLOAD_BYTES}", "HASH", self.grown(before))

    def measure_dedup(self, shape: str) -> None:
        """Remember publish ids as keys that expire, or as members of one set per window."""
        remember = self.client.register_script(REMEMBER[shape])
        head = ["{cqrs}cq:dedup:"], [DEDUP_MS] if shape == "key" else ["window"]
        before, spent = self.used_memory(), 0.0
        for first in range(0, self.messages, CHUNK):
            ids = [uuid.uuid4().hex for _ in range(min(CHUNK, self.messages - first))]
            started = time.perf_counter()
            remember(keys=head[0], args=[*head[1], *ids])
            spent += _since(started)
        self.note("dedup: memory, bytes a publish id", shape, self.grown(before))
        self.note(f"dedup by {CHUNK:,}: µs an id", shape, spent * 1e6 / self.messages)
        if shape == "set":
            started = time.perf_counter()
            self.client.delete(*head[0])
            self.note("dedup: DEL of a whole window, ms", shape, 1e3 * _since(started))

    def used_memory(self) -> int:
        """Return what the server has allocated, in bytes."""
        return int(self.client.info("memory")["used_memory"])

    def grown(self, before: int) -> float:
        """Return the growth since a look at `used_memory`, in bytes per message."""
        return (self.used_memory() - before) / self.messages


def _since(started: float) -> float:
    return time.perf_counter() - started


def main() -> int:
    """Run the rounds, and report."""
    parser = parser_of("ready_queue", __doc__, rounds=5)
    parser.add_argument("--messages", type=int, default=1_000_000, help="depth of the queue")
    options = parse(parser, SHORT)
    if options.messages < 4 * CALLS * TAKE:
        parser.error(f"--messages: at least {4 * CALLS * TAKE}, so that the queue stays deep")
    report = Report("ready_queue", options, {})
    with tempfile.TemporaryDirectory() as directory:
        node = RedisNode(Path(directory), appendonly=False, options=SETTINGS)
        try:
            node.start()
            client = node.client(socket_timeout=None)
            report.versions["server"] = server_version(client)
            benchmark = Benchmark(client, options.messages, report)
            for number in range(options.rounds):
                with report.attempt("a round"):
                    benchmark.run_round()
                if report.failed:
                    break
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        finally:
            node.teardown()
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
