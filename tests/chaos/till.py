"""An application whose worker gets its commands again and again: for `tests.chaos.redeliveries`.

A worker runs `tests.chaos.till:app` on the server in TILL_URL. There a command's task, once it has
done its work, is at random rejected, retried, or its process killed, so that the command is
delivered again. How often a command was delivered, and its handler run, is counted in Redis.
"""

from __future__ import annotations

import json
import os
import random
import signal
from functools import cache, wraps
from typing import Any

import redis
from celery import Celery
from celery.exceptions import Reject

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, applies, command_handler
from cqrs_celery.backends.opening import open_event_store
from cqrs_celery.dispatch.command_task import CommandTask

#: A command is made to come again so often at most.
MOST_TIMES = 4


class Changed(Event, name="till.changed"):
    by: int


class Account(Aggregate, name="ChaosAccount"):
    balance: int = 0

    @applies(Changed)
    def _changed(self, event: Changed) -> None:
        self.balance += event.by


class Deposit(Command, name="till.deposit", aggregate=Account, key="id"):
    id: str
    amount: int
    number: int


class Withdraw(Command, name="till.withdraw", aggregate=Account, key="id"):
    id: str
    amount: int
    number: int


class ReadBook(Command, name="till.read_book"):
    """Ask for every account's changes."""


@cache
def _server(pid: int) -> redis.Redis:
    return redis.Redis.from_url(os.environ["TILL_URL"])


def server() -> redis.Redis:
    """Return this process's client of the worker's server."""
    return _server(os.getpid())


def change(command: Deposit | Withdraw, session: Session, by: int) -> int:
    server().hincrby("runs", str(command.number), 1)
    account = session.find(Account, command.id)
    if account is None:
        account = Account(command.id)
        session.add(account)
    account.record(Changed(by=by))
    return account.balance


@command_handler(Deposit)
def deposit(command: Deposit, session: Session) -> int:
    return change(command, session, command.amount)


@command_handler(Withdraw)
def withdraw(command: Withdraw, session: Session) -> int:
    return change(command, session, -command.amount)


@command_handler(ReadBook)
def read_book(command: ReadBook) -> dict[str, list[int]]:
    book: dict[str, list[int]] = {}
    position = 0
    while events := app.cqrs.store.read_all(after_position=position, limit=1000):
        for stored in events:
            by = json.loads(stored.event.data)["by"]
            book.setdefault(stored.stream.aggregate_id, []).append(by)
        position = events[-1].global_position
    return book


def disturbed(run: Any) -> Any:
    """Return a task's `run` that makes its message come again."""

    @wraps(run)
    def disturb(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.name == ReadBook.__registered__.name:
            return run(self, *args, **kwargs)
        count: Any = server().hincrby("deliveries", self.request.id, 1)
        chance = random.Random(f"{os.environ['TILL_SEED']}:{self.request.id}:{count}")
        fate = chance.random() if count <= MOST_TIMES else 1
        if fate < 0.1:
            _note("rejected before their work")
            raise Reject("not yet", requeue=True)
        result = run(self, *args, **kwargs)
        if fate < 0.6:
            _note("rejected after their commit")
            raise Reject("once more", requeue=True)
        if fate < 0.65:
            _note("retried after their commit")
            # Not at once: Celery notes the retry after it was sent, over what that has noted.
            raise self.retry(countdown=0.2, max_retries=None)
        if fate < 0.655 and "TILL_KILLS" in os.environ:
            _note("killed after their commit")
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return disturb


def _note(what: str) -> None:
    server().hincrby("fates", what, 1)


def client(url: str, *, store: str = "broker") -> CQRS:
    """Return the application on a server; its events are in the broker, or where the URL says."""
    app = Celery("till", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        broker_transport="cqrs_celery.transport:Transport",
        broker_connection_retry_on_startup=True,
        broker_transport_options={"lease_s": 1.0},
        worker_prefetch_multiplier=4,
    )
    return CQRS(app, store=None if store == "broker" else open_event_store(store))


if "TILL_URL" in os.environ:
    CommandTask.run = disturbed(CommandTask.run)  # type: ignore[method-assign]
    app = client(os.environ["TILL_URL"], store=os.environ["TILL_STORE"]).app
