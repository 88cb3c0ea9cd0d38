"""The reliable queue under test, with the words that its tests are written in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis

from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import (
    DeadLetter,
    Destination,
    Exchange,
    LetterPolicy,
    Settlement,
    Taken,
)

PREFIX = "{t}."
LEASE_MS = 600_000

#: What may stay when every message is done: counters, registrations, and ids that expire.
MAY_STAY = ("cq:id", "cq:fence", "cq:consumers", "cq:idle", "cq:dedup:", "cq:consuming:",
            "cq:queues_of:", "cq:about", "cq:prioritised", "cq:steps", "cq:policy", "cq:queues",
            "cq:routes:", "cq:topics_of:", "cq:counts:", "cq:format", "cq:upkeep", "cq:old_until",
            "cq:callable", "cq:busy", "cq:called", "cq:raw", "cq:ttl")  # fmt: skip


def texts(taken: Iterable[Taken]) -> list[str]:
    """Return what was in the messages."""
    return [(one.payload + one.body).decode() for one in taken]


def leftovers(client: Any) -> list[str]:
    """Return the keys that no finished message may leave behind."""
    names = [key.decode().removeprefix(PREFIX) for key in client.scan_iter(count=1000)]
    return sorted(name for name in names if not name.startswith(MAY_STAY))


def in_flight(client: Any) -> list[bytes]:
    """Return the keys of whatever consumers hold.

    By KEYS, which sees all at one moment: SCAN may miss what recovery renames meanwhile.
    """
    return list(client.keys("*cq:flight:*"))


def make_due(queue: ReliableQueue, *, is_by_name: bool = False) -> None:
    """Let everything that is delayed be due now, in the order of its times, or else of its names.

    What was delayed by the same time comes in an order that depends on the milliseconds between.
    """
    client: Any = queue.client
    for name in client.zrange(queue.key("due"), 0, -1):
        delayed = queue.key(f"delayed:{name.decode()}")
        members = client.zrange(delayed, 0, -1)
        members = sorted(members) if is_by_name else members
        client.zadd(delayed, {member: n for n, member in enumerate(members)})
        client.zadd(queue.key("due"), {name: 0})


def counts_by_scan(queue: ReliableQueue, name: str) -> Counter[str]:
    """Count what stands in a queue's sequences by going through them, as `cq:counts` names it."""
    client: Any = queue.client
    found: Counter[str] = Counter()
    for sequence, state in client.hgetall(queue.key(f"seqs:{name}")).items():
        length = client.llen(queue.key(f"seq:{name}\x1f").encode() + sequence)
        kind = state.decode()[0]
        if kind in "ld":
            found[kind] += 1
            found[f"{kind}b"] += length - 1
        else:
            held = int(state.split(b"|")[1]) if kind == "h" else 1
            found["b"] += length - held
            found["x"] += held - 1
    return +found


def counts_kept(queue: ReliableQueue, name: str) -> Counter[str]:
    """Return the counts that are kept of a queue's sequences, those that are not 0."""
    client: Any = queue.client
    kept = {key.decode(): int(n) for key, n in client.hgetall(queue.key(f"counts:{name}")).items()}
    kept.pop("at", None)
    # While a count is under way, 2 ** 48 is added to each.
    return Counter({key: left for key, n in kept.items() if (left := n % 2**48)})


class Worker:
    """A consumer that takes and settles, and remembers nothing."""

    def __init__(
        self,
        queue: QueueCase,
        name: str,
        queues: Sequence[str],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.queue = queue
        self.name = name
        self.queues = queues
        queue.beat(name, LEASE_MS, register=True)
        queue.consume(name, queues, about=about)

    def exchange(
        self, *settlements: Settlement, count: int = 10, run: int = 1, **options: Any
    ) -> Exchange:
        """Settle and take in one round trip."""
        options.setdefault("queues", self.queues)
        return self.queue.settle_and_take(self.name, settlements, count=count, run=run, **options)

    def take(self, count: int = 10, *, run: int = 1, **options: Any) -> list[Taken]:
        """Take what is next."""
        return list(self.exchange(count=count, run=run, **options).taken)

    def settle(self, *settlements: Settlement) -> Exchange:
        """Settle and take nothing."""
        return self.exchange(*settlements, count=0)

    def end(self, how: Any, taken: Iterable[Taken], *arguments: Any) -> Exchange:
        """Settle all these deliveries the same way."""
        return self.settle(*(how(one.id, one.fence, *arguments) for one in taken))


class QueueCase(ReliableQueue):
    """A reliable queue on a test's server."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(redis.Redis.from_url(url), prefix=PREFIX, **options)
        #: The same client, for looks into the keys; the driver's types fit no reply exactly.
        self.redis: Any = self.client

    def send(
        self, *tags: str, to: str = "orders", sequence: str = "", priority: int = 0, **options: Any
    ) -> int:
        """Publish messages one after the other; returns the id of the last."""
        for tag in tags:
            self.publish([Destination(to, tag, sequence, priority)], **options)
        return int(self.redis.get(self.key("id")) or 0)

    def send_many(self, count: int, *, to: str = "orders", sequence: str = "") -> None:
        """Publish "0", "1", … in a few calls."""
        for start in range(0, count, 1_000):
            numbers = range(start, min(start + 1_000, count))
            self.publish([Destination(to, str(n), sequence) for n in numbers])

    def count_of(self, queue: str = "orders") -> dict[str, int]:
        """Return the counts of a queue that are not 0."""
        return {name: n for name, n in self.count(queue)._asdict().items() if n}

    def send_shared(self, body: str, *queues: str, sequence: str = "", **options: Any) -> None:
        """Publish one body to several queues."""
        self.publish([Destination(queue, "", sequence) for queue in queues], body=body, **options)

    def push_raw(self, payload: str, *, to: str = "orders") -> None:
        """Publish as stock Kombu does: the message itself onto the queue's list."""
        self.redis.lpush(PREFIX + to, payload)

    def block_on_dead_letter(self, queue: str) -> None:
        """Let the dead letters of a queue hold up their sequence."""
        self.letters.set_policy(queue, LetterPolicy())

    def dead_letters(self, queue: str = "orders") -> list[DeadLetter]:
        """Return the letters of a queue in the order of their messages."""
        return sorted(self.letters.all(queue))

    def redrive(self, queue: str, message_id: int) -> bool:
        """Put a letter back in line; False if that was not done."""
        return self.letters.redrive(queue, message_id) == "done"

    def discard(self, queue: str, message_id: int) -> bool:
        """Delete a letter; False if that was not done."""
        return self.letters.discard(queue, message_id) == "done"

    def worker(self, name: str = "anna", *queues: str, **about: Any) -> Worker:
        """Start a consumer of these queues, of orders without any, of which this is known."""
        return Worker(self, name, queues or ("orders",), about)

    def end_lease(self, *names: str) -> None:
        """Let the leases of these consumers end now."""
        self.redis.zadd(self.key("consumers"), dict.fromkeys(names, 1))

    def make_due(self) -> None:
        """Let everything that is delayed be due now, in its order."""
        make_due(self)

    def is_idle(self, name: str) -> bool:
        """Say whether a consumer waits for a wake-up."""
        return bool(self.redis.sismember(self.key("idle"), name))


class Ears:
    """Hear the wake-ups of consumers, in order."""

    def __init__(self, queue: QueueCase, *names: str) -> None:
        self._queue = queue
        self._pubsub: Any = queue.client.pubsub()
        self._pubsub.subscribe(*(queue.key(f"wake:{name}") for name in names), "end")
        for _ in (*names, "end"):
            assert self._pubsub.get_message(timeout=5)["type"] == "subscribe"

    def heard(self) -> list[tuple[str, str]]:
        """Return who was woken since the last call, each with the queue that it was woken for."""
        self._queue.redis.publish("end", "")
        found = []
        while (message := self._pubsub.get_message(timeout=5))["channel"] != b"end":
            name = message["channel"].decode().rpartition(":")[2]
            found.append((name, message["data"].decode()))
        return found

    def close(self) -> None:
        """Stop listening."""
        self._pubsub.close()


@contextmanager
def counted(queue: ReliableQueue) -> Iterator[Counter[str]]:
    """Count the commands that the server runs inside, those in scripts too, but for INFO."""
    client, calls = queue.client, Counter[str]()

    def all_calls() -> Counter[str]:
        stats: Any = client.info("commandstats")
        return Counter({name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()})

    before = all_calls()
    yield calls
    calls.update(all_calls() - before)
    del calls["info"]


@contextmanager
def opened(url: str, **options: Any) -> Iterator[QueueCase]:
    """Open a queue on a server, close its connections after."""
    case = QueueCase(url, **options)
    try:
        yield case
    finally:
        case.client.close()
