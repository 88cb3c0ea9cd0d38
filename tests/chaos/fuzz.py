"""Feed workers with whatever bytes a queue may hold; see that none ends, and nothing vanishes.

Messages are mutations of valid ones, in the form of this transport and of a stock producer, and
bytes at random. After each batch the worker's process is the same, a task runs, and every message
has become a run, a task that came too late, or a dead letter with its reason.
"""

from __future__ import annotations

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from uuid import UUID

import redis
from click.testing import CliRunner

from cqrs_celery.cli import cqrs
from cqrs_celery.queue.reliable_queue import ReliableQueue
from cqrs_celery.queue.values import Destination
from tests import grist
from tests.nodes import RedisNode, WorkerNode
from tests.queues import in_flight
from tests.waiting import wait_until

QUEUE = "grist.commands"

#: Messages between two looks at the worker.
BATCH = 500

#: Kinds of workers: the pool, and whether there is a CQRS application.
KINDS = (("solo", True), ("solo", False), ("prefork", True), ("prefork", False))


class Stored(NamedTuple):
    """Be bytes for a queue, and the way in which they get there.

    Attributes:
        content: the bytes.
        is_raw: True if they are pushed to the list, as a stock producer does; False if they are
            published, as a message with an id.
    """

    content: bytes
    is_raw: bool


def put(queue: ReliableQueue, messages: Iterable[Stored]) -> None:
    """Put messages into the queue, in their order."""
    for stored in messages:
        if stored.is_raw:
            queue.client.lpush(QUEUE, stored.content)
        else:
            queue.publish([Destination(QUEUE, stored.content)])


class Mill:
    """A worker, the server whose queue it consumes, and what became of what was fed to it."""

    def __init__(
        self, folder: Path, url: str, *, pool: str, is_cqrs: bool, concurrency: int = 2
    ) -> None:
        """Prepare a worker of a pool; `begin` starts it."""
        self.url = url
        #: The driver's types fit no reply exactly.
        self.data: Any = redis.Redis.from_url(url)
        self.queue = ReliableQueue(self.data)
        name = f"{pool}-{'cqrs' if is_cqrs else 'plain'}"
        self.worker = WorkerNode(
            folder,
            "tests.grist",
            name=name,
            pool=pool,
            concurrency=concurrency,
            queues=[QUEUE],
            arguments=["--without-mingle", "--without-gossip"],
            env={"GRIST_URL": url, "GRIST_CQRS": "1" if is_cqrs else ""},
        )
        self._app = grist.client(url, is_cqrs=False)
        self._sentinels = 0
        self.fed = 0

    def begin(self) -> None:
        """Wait until the worker is ready; from then on, it may not end."""
        if self.worker.status != "running":
            self.worker.start()
        self.worker.wait_ready()
        self._pid = self.worker.pid
        self.forget()

    def close(self) -> None:
        """End the worker."""
        self.worker.teardown()
        self._app.close()
        self.data.close()

    def feed(self, messages: list[Stored]) -> None:
        """Put messages into the queue, in their order."""
        self.fed += len(messages)
        put(self.queue, messages)

    def letters(self) -> dict[int, dict[str, Any]]:
        """Return the reasons of all dead letters by message; checks that each has one."""
        found = {one.id: json.loads(one.why) for one in self.queue.letters.all(QUEUE)}
        assert all(why.get("reason") for why in found.values()), found
        return found

    def read_letters(self, show: int) -> None:
        """Check that the commands for dead letters read them all, and show so many of them."""
        shown = self._run("dead-letters", "list", "--json")
        rows = json.loads(shown)
        assert len(rows) == len(self.letters())
        for row in rows[:show]:
            assert json.loads(self._run("dead-letters", "show", str(row["id"]), "--json"))
            lines = self._run("dead-letters", "show", str(row["id"])).splitlines()
            assert sum(line.startswith("reason ") for line in lines) == 1, lines

    def choose_letters(self) -> None:
        """Check that the other commands that read messages read all of them."""
        self._run("dead-letters", "list")
        self._run("dead-letters", "discard", "--all", "--dry-run")
        self._run("queues", "--json")

    def _run(self, *arguments: str) -> str:
        result = CliRunner().invoke(cqrs, arguments, obj=SimpleNamespace(app=self._app))
        if result.exception is not None:
            raise result.exception
        return result.stdout

    def ran(self) -> set[int]:
        """Return the ids of the messages whose tasks were run."""
        return {int(one) for one in self.data.smembers(grist.RUNS)}

    def expired(self) -> set[int]:
        """Return the ids of the messages whose tasks came too late."""
        return {int(one) for one in self.data.smembers(grist.EXPIRED)}

    def ended(self) -> set[int]:
        """Return the ids of all messages of which something has become."""
        dead = self.data.hkeys(f"cq:dead:{QUEUE}")
        return self.ran() | self.expired() | {int(one) for one in dead}

    def ask(self) -> None:
        """Send a task behind what was fed, by which `check` sees that the worker works on."""
        self._sentinels += 1
        self._app.send_task("grist.sentinel", (str(self._sentinels),), queue=QUEUE)
        # What a stock producer pushes wakes nobody: an idle worker would look in a second.
        for consumer in self.data.zrange("cq:consumers", 0, -1):
            self.data.publish(f"cq:wake:{consumer.decode()}", QUEUE)

    def check(self, deadline_s: float = 30.0) -> None:
        """Check that the worker lives and works, and that everything fed has become something."""
        name = str(self._sentinels)

        def went_on() -> bool:
            assert self.worker.status == "running", f"it ended:\n{self.worker.log_tail(60)}"
            return self.data.lrange(grist.SENTINELS, -1, -1) == [name.encode()]

        wait_until(went_on, deadline_s, lambda: f"a task to run:\n{self.worker.log_tail(60)}")
        wait_until(
            lambda: len(self.ended()) == self.fed,
            deadline_s,
            lambda: (
                f"{self.fed} messages to end, not {len(self.ended())}; {self.queue.count(QUEUE)}"
                f"\n{self.worker.log_tail(60)}"
            ),
        )
        assert self.worker.pid == self._pid, "the worker was started anew"
        wait_until(lambda: not in_flight(self.data), deadline_s, "nothing in flight")
        assert not self.queue.count(QUEUE).ready

    def settle_accounts(self) -> Counter[str]:
        """Return what became of all that was fed, and forget it; checks that nothing is missing."""
        letters, ran, expired = self.letters(), self.ran(), self.expired()
        found = Counter(why["reason"] for why in letters.values())
        found["runs"] = len(ran - letters.keys())
        found["expired"] = len(expired - letters.keys() - ran)
        assert found.total() == self.fed, (found, self.fed)
        self.forget()
        return found

    def forget(self) -> None:
        """Forget what was fed and what became of it."""
        self.data.delete(grist.RUNS, grist.EXPIRED, f"cq:dead:{QUEUE}", "cq:msg")
        self.fed = 0


# ------------------------------------------------------------ what is fed


def valid(chance: random.Random) -> tuple[dict[str, Any], Any]:
    """Return a valid message's head and its body."""
    task_id = str(UUID(int=chance.getrandbits(128)))
    task = chance.choice(("grist.work", "grist.late_work", "grist.grind"))
    command = {"type": "grist.grind", "version": 1, "data": {"id": "a", "parts": [1, {"b": 2}]}}
    args: list[Any] = [command] if task == "grist.grind" else [1, "two", [3]]
    options = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    head = {
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "properties": {
            "correlation_id": task_id,
            "reply_to": str(UUID(int=chance.getrandbits(128))),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "priority": 0,
            "timestamp": 1_700_000_000,
        },
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "shadow": None,
            "eta": None,
            "expires": None,
            "group": None,
            "group_index": None,
            "retries": 0,
            "timelimit": [None, None],
            "root_id": task_id,
            "parent_id": None,
            "argsrepr": "(1,)",
            "kwargsrepr": "{}",
            "origin": "gen1@test",
            "ignore_result": False,
            "replaced_task_nesting": 0,
            "stamped_headers": None,
            "stamps": {},
        },
    }
    return head, [args, {}, options]


def nested(levels: int, opening: str = "[", closing: str = "]") -> Any:
    """Return JSON nested so deep, as `Text`."""
    return Text(opening * levels + closing * levels)


class Text(str):
    """A piece of JSON, or of none, that is written as it is."""

    __slots__ = ()


def written(value: Any) -> str:
    """Return a value as JSON, with each `Text` in it as it is."""
    if isinstance(value, Text):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{json.dumps(key)}: {written(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


#: What takes the place of a part of a message.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**63, 10**30, -(10**30), 0.5, -0.0,
    "", "x", "0", "rot13", "base64", "utf-16", "\x00", "a\x00b", "ünïcode 🔩", "\x1b[31mred\x1b[0m",
    "grist.work", "grist.grind", "grist.nothing", "celery.ping", "application/json", "text/plain",
    "application/text",
    "application/x-python-serialize", "application/gzip", "zlib", "bz2", "cq:msg", "a\x1fb",
    "2020-01-01T00:00:00+00:00", "9999-12-31T23:59:59", "0001-01-01T00:00:00+14:00", "now",
    [], [1], [None], ["x"], [[]], [[1, 2], [3]], {}, {"a": 1}, {"task": "x"}, {"": None},
    {"__type__": "datetime", "__value__": "x"}, {"__type__": "uuid", "__value__": {"hex": "z"}},
    Text("NaN"), Text("Infinity"), Text("-Infinity"), Text("1e400"), Text("-1e999"),
    Text('"\\ud800"'), Text('{"a": 1, "a": [2]}'), Text("1" * 400), Text("1" * 5000), Text("tru"),
    nested(70), nested(250), nested(300), nested(480), nested(2000), nested(20_000),
    nested(300, '{"a":', "}"), nested(2000, '[{"a":', "}]"),
)  # fmt: skip

#: Keys that are added where they may do harm.
ODD_KEYS = (
    "body", "body_encoding", "compression", "cqrs_batch", "cqrs_eta", "cqrs_first_failed_at",
    "cqrs_lease", "cqrs_sequence", "delivery_tag", "delivery_info", "args", "kwargs", "get",
    "update", "clear", "headers", "properties", "hostname", "id", "task", "callbacks", "chain",
    "chord", "errbacks", "utc", "is_eager", "called_directly", "_children", "_protected",
    "timelimit", "time_limit", "stamps", "stamped_headers", "x", "", "__class__", "redelivered",
    "expires", "eta", "retries", "taskset", "meth", "reply_to", "correlation_id", "expiration",
    "idempotency_key", "metadata", "type", "version", "data", "message_id", "traceback", "loglevel",
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Return every container in a value, with each key or index that it has."""
    if isinstance(value, (dict, list)):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def odd(chance: random.Random) -> Any:
    """Return what takes the place of a part, as a copy: what is changed in it, stays there."""
    return deepcopy(chance.choice(ODD))


def mutate(chance: random.Random, value: Any) -> None:
    """Change a value in a place of it: replace, remove, add, or give it a neighbour's."""
    found = list(places(value))
    if not found:
        return
    container, key = chance.choice(found)
    how = chance.random()
    if how < 0.6:
        container[key] = odd(chance)
    elif how < 0.75:
        del container[key]
    elif how < 0.9 and isinstance(container, dict):
        container[chance.choice(ODD_KEYS)] = odd(chance)
    else:
        other, other_key = chance.choice(found)
        container[key] = Text(written(other[other_key]))


def spoil(chance: random.Random, content: bytes) -> bytes:
    """Change bytes: cut, flip, insert, double."""
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at = chance.randrange(len(data) + 1)
        how = chance.randrange(4)
        if how == 0:
            del data[at : at + chance.choice((1, 5, 1000))]
        elif how == 1 and at < len(data):
            data[at] = chance.randrange(256)
        elif how == 2:
            data[at:at] = chance.choice((b"\x00", b"\xff", b"\n", b'"', b"{", b"[", b"@", b"\\"))
        else:
            data[at:at] = data[at : at + 20]
    return bytes(data)


def stored(head: dict[str, Any], body: Any, *, is_stock: bool) -> bytes:
    """Return a message as it lies in the queue.

    Args:
        head: its head.
        body: its body, before it is written.
        is_stock: as a stock producer writes it, with the body inside.
    """
    content = written(body).encode()
    if not is_stock:
        return written(head).encode() + b"\n" + content
    properties = head["properties"]
    if isinstance(properties, dict):
        properties = {"body_encoding": "base64", "delivery_tag": "1", **properties}
    return written(
        {"body": base64.b64encode(content).decode(), **head, "properties": properties}
    ).encode()


def message(chance: random.Random) -> Stored:
    """Return one message: valid, mutated, spoilt, or bytes at random."""
    is_raw = chance.random() < 0.4
    is_stock = is_raw != (chance.random() < 0.1)
    how = chance.random()
    if how < 0.08:
        content = chance.randbytes(chance.choice((0, 1, 2, 5, 30, 300)))
    elif how < 0.16:
        content = written(chance.choice(ODD)).encode()
    else:
        head, body = valid(chance)
        whole: dict[str, Any] = {"head": head, "body": body}
        for _ in range(chance.choice((0, 1, 1, 1, 1, 2, 3))):
            parts = (head, head["headers"], head["properties"], whole, body)
            mutate(chance, chance.choice(parts) or whole)
            if not (
                isinstance(whole.get("head"), dict)
                and isinstance(head.get("headers"), dict)
                and isinstance(head.get("properties"), dict)
            ):
                break
        head, body = whole.get("head", {}), whole.get("body")
        if isinstance(head, dict):
            content = stored(
                {"properties": {}, **head} if is_stock else head, body, is_stock=is_stock
            )
        else:
            content = written(head).encode() + b"\n" + written(body).encode()
        if how > 0.9:
            content = spoil(chance, content)
    return Stored(content, is_raw and not is_ours(content))


def is_ours(content: bytes) -> bool:
    """Return whether an element of a list is the id of a message that may be in the queue."""
    return content.isdigit() and len(content) < 7


def messages(seed: int, count: int) -> list[Stored]:
    """Return so many messages, the same for one seed."""
    chance = random.Random(seed)
    return [message(chance) for _ in range(count)]


# ------------------------------------------------------------ the run


@contextmanager
def mills(folder: Path, kinds: Any = KINDS) -> Iterator[list[Mill]]:
    """Run one server, and one worker of each kind on a database of its own."""
    node = RedisNode(folder, appendonly=False)
    running: list[Mill] = []
    try:
        node.start()
        for number, (pool, is_cqrs) in enumerate(kinds):
            running.append(Mill(folder, node.url_of(number), pool=pool, is_cqrs=is_cqrs))
            running[-1].worker.start()
        for mill in running:
            mill.begin()
        yield running
    finally:
        for mill in running:
            mill.close()
        node.teardown()


def fuzz(folder: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Feed so many messages to the workers, in batches, each kind of worker its share.

    Args:
        folder: where the server and the workers run.
        rounds: how many messages in all.
        seed: of the first batch of the first worker; each batch has one of its own.

    Returns:
        What became of them, by reason, and how many workers ended: none, or an error is raised.
    """
    began, seen = time.monotonic(), Counter[str]()
    with mills(folder) as running:
        share = rounds // len(running)
        for done in range(0, share, BATCH):
            for number, mill in enumerate(running):
                mill.feed(messages(seed + done * len(running) + number, min(BATCH, share - done)))
                mill.ask()
            for mill in running:
                mill.check(120)
                mill.read_letters(show=3)
                mill.choose_letters()
                seen += mill.settle_accounts()
    return {
        "messages": share * len(running),
        "runs": seen.pop("runs"),
        "too late to run": seen.pop("expired", 0),
        **{f"dead letters: {reason}": count for reason, count in sorted(seen.items())},
        "messages without an outcome": 0,
        "workers ended": 0,
        "seconds": round(time.monotonic() - began),
    }
