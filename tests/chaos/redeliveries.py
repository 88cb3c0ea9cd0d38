"""Deliver commands again and again, and add up what they have done."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from cqrs_celery import CQRS
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.backends.sql.event_store import SqlEventStore
from cqrs_celery.backends.sql.schema import create_schema
from tests.chaos import till
from tests.chaos.lab import ALONE
from tests.nodes import RedisNode, WorkerNode
from tests.postgres import PostgresNode
from tests.queues import in_flight
from tests.waiting import wait_until

#: Commands sent at a time, in the middle of which a worker is killed.
AT_A_TIME = 500

ACCOUNTS = 40

ROWS = (
    "redeliveries", "commands", "sent twice under one idempotency key",
    "sent twice under one task id", "rejected before their work", "rejected after their commit",
    "retried after their commit", "killed after their commit", "workers killed", "effects",
    "handlers run again for want of a commit", "effects lost", "effects doubled",
)  # fmt: skip


@dataclass
class Sent:
    """Be one command: what it does, and what asks for its outcome, once a sending."""

    number: int
    account: str
    by: int
    results: list[Any] = field(default_factory=list)


class Sender:
    """Send commands at random, some of them twice, and remember what they are to do."""

    def __init__(self, cqrs: CQRS, chance: random.Random, seen: Counter[str]) -> None:
        self._cqrs = cqrs
        self._chance = chance
        self._seen = seen
        self.sent: list[Sent] = []

    def send(self, count: int) -> None:
        """Send so many commands."""
        again: list[Any] = []
        for _ in range(count):
            again += self._send_one()
            if again and self._chance.random() < 0.5:
                again.pop(self._chance.randrange(len(again)))()
        for send in again:
            send()

    def _send_one(self) -> list[Any]:
        number, amount = len(self.sent), self._chance.randrange(1, 100)
        account = f"account-{self._chance.randrange(ACCOUNTS)}"
        is_deposit = self._chance.random() < 0.5
        one = Sent(number, account, amount if is_deposit else -amount)
        self.sent.append(one)
        kind = till.Deposit if is_deposit else till.Withdraw
        command = kind(id=account, amount=amount, number=number)
        fate = self._chance.random()
        options: dict[str, Any] = {}
        if fate < 0.3:
            # A deposit and a withdrawal may have the same key: it is the command's own.
            options["idempotency_key"] = f"{number // 2 if fate < 0.15 else number}:{is_deposit}"
            if self._is_taken(kind, options["idempotency_key"]):
                options["idempotency_key"] = f"once-{number}"
        elif fate < 0.4:
            options["task_id"] = f"till-{number}"

        def send() -> None:
            one.results.append(self._cqrs.send_command(command, **options))

        send()
        if "idempotency_key" in options:
            self._seen["sent twice under one idempotency key"] += 1
        elif "task_id" in options:
            self._seen["sent twice under one task id"] += 1
        return [send] if options else []

    def _is_taken(self, kind: type, key: str) -> bool:
        taken = self.__dict__.setdefault("_taken", set())
        is_taken = (kind, key) in taken
        taken.add((kind, key))
        return is_taken

    def balances(self) -> Counter[str]:
        """Return what every account must have in the end."""
        found: Counter[str] = Counter()
        for one in self.sent:
            found[one.account] += one.by
        return found


def redeliver_commands(
    folder: Path, *, rounds: int, seed: int, store: str = "broker", kills: bool = True
) -> dict[str, Any]:
    """Make a worker get its commands again, so many times in all, and compare every balance.

    Args:
        folder: where everything runs.
        rounds: redeliveries at least.
        seed: of what is sent, and of what becomes of it.
        store: "broker", or an event store's URL.
        kills: whether processes are killed too; not with a store that would die with them.

    Returns:
        Rows of what happened.

    Raises:
        AssertionError: a balance is wrong, an outcome is another one than the first, or a handler
            ran again though its command had committed.
    """
    chance, seen = random.Random(seed), Counter[str]()
    with running(folder, seed=seed, store=store, kills=kills) as (cqrs, node, worker):
        started_at = time.monotonic()
        sender = Sender(cqrs, chance, seen)
        with node.client() as client:
            fates: Any
            while seen["redeliveries"] < rounds:
                sender.send(min(AT_A_TIME, rounds))
                if kills:
                    seen["held by killed workers"] += _kill(worker, client)
                    seen["workers killed"] += 1
                wait_until(lambda: not client.hlen("cq:msg"), 120, "the queue to be empty")
                deliveries: Any = client.hvals("deliveries")
                seen["redeliveries"] = sum(map(int, deliveries)) - len(sender.sent)
            runs: Any = client.hgetall("runs")
            fates = client.hgetall("fates")
            assert not client.exists("cq:dead:till.commands"), "a command became a dead letter"
        seen.update({name.decode(): int(count) for name, count in fates.items()})
        book = cqrs.send_command(till.ReadBook()).get(timeout=60)["value"]
        compare(sender, book, seen)
        again = sum(map(int, runs.values())) - len(sender.sent)
        assert again <= seen["held by killed workers"], f"{again} handlers ran again: {dict(seen)}"
        seen["handlers run again for want of a commit"] = again
        check_outcomes(cqrs, sender)
    found = {name: seen[name] for name in ROWS}
    return (
        {"store": store.partition(":")[0]}
        | found
        | {"seconds": round(time.monotonic() - started_at)}
    )


def redeliver_on_sqlite(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with the events in a SQLite file."""
    store = f"sqlite:///{folder}/till.db"
    return redeliver_commands(folder, rounds=rounds, seed=seed, store=store)


def redeliver_on_postgresql(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with the events in a PostgreSQL database."""
    (folder / "postgres").mkdir()
    node = PostgresNode(folder / "postgres", settings="fsync = off")
    try:
        node.start()
        store = node.create_database("till")
        return redeliver_commands(folder, rounds=rounds, seed=seed, store=store)
    finally:
        node.teardown()


def redeliver_in_memory(folder: Path, *, rounds: int, seed: int) -> dict[str, Any]:
    """Do the same with the events in the worker's memory, which therefore is not killed."""
    return redeliver_commands(folder, rounds=rounds, seed=seed, store="memory://", kills=False)


def compare(sender: Sender, book: dict[str, list[int]], seen: Counter[str]) -> None:
    """Compare what the accounts have been through with what was sent, change by change."""
    seen["commands"] = len(sender.sent)
    seen["effects"] = sum(map(len, book.values()))
    wanted: dict[str, Counter[int]] = {}
    for one in sender.sent:
        wanted.setdefault(one.account, Counter())[one.by] += 1
    for account, changes in wanted.items():
        found = Counter(book.get(account, []))
        seen["effects lost"] += (changes - found).total()
        seen["effects doubled"] += (found - changes).total()
    assert not seen["effects lost"] + seen["effects doubled"], dict(seen)
    balances = {account: sum(changes) for account, changes in book.items()}
    assert balances == dict(sender.balances())


def check_outcomes(cqrs: CQRS, sender: Sender) -> None:
    """Check that whoever sent a command twice was told of one outcome."""
    for one in sender.sent:
        if len(one.results) > 1:
            metas = [cqrs.app.backend.get_task_meta(result.id) for result in one.results]
            assert all(meta["status"] == "SUCCESS" for meta in metas), metas
            told = {(meta["result"]["value"], meta["result"]["position"]) for meta in metas}
            assert len(told) == 1, f"command {one.number}: {told}"


@contextmanager
def running(
    folder: Path, *, seed: int, store: str, kills: bool
) -> Iterator[tuple[CQRS, RedisNode, WorkerNode]]:
    """Run a server, a worker of the till, and a client, as long as the block lasts."""
    for name in ("redis", "worker"):
        (folder / name).mkdir()
    node = RedisNode(folder / "redis")
    if "sql" in store:
        create_schema(cast(SqlEventStore, open_event_store(store)))
    worker: WorkerNode | None = None
    try:
        node.start()
        env = {
            "TILL_URL": node.url,
            "TILL_SEED": str(seed),
            "TILL_STORE": store,
        }
        worker = WorkerNode(
            folder / "worker",
            "tests.chaos.till",
            pool="prefork" if kills else "threads",
            concurrency=2,
            arguments=ALONE,
            env=env | ({"TILL_KILLS": "1"} if kills else {}),
            loglevel="INFO",
        )
        worker.start()
        worker.wait_ready()
        cqrs = till.client(node.url)
        yield cqrs, node, worker
        consumer = cqrs.app.backend.result_consumer
        consumer.stop()
        consumer.subscribed_to.clear()
        cqrs.app.close()
    except BaseException as error:
        if worker is not None:
            error.add_note(f"--- the worker's last output\n{worker.log_tail(25)}")
        raise
    finally:
        if worker is not None:
            worker.teardown()
        node.teardown()


def _kill(worker: WorkerNode, client: Any) -> int:
    """Kill a worker in the middle of its work, start it again; return what it held."""
    keys = in_flight(client)
    held = sum(client.hlen(key) for key in keys)
    worker.kill()
    # What it took since it was asked counts too: a fetch brings as much again at most.
    worker.start()
    worker.wait_ready()
    return max(held, 1) * 2
