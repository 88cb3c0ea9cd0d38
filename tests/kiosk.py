"""The application of the tests about refusals: stands that sell what is in stock.

A worker runs `tests.kiosk:app` on the server in KIOSK_URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery

from cqrs_celery import (
    CQRS,
    Aggregate,
    Command,
    Event,
    Refusal,
    Session,
    applies,
    command_handler,
)
from cqrs_celery.transport import TRANSPORT


class Sold(Event, name="kiosk.sold"):
    count: int


class SoldOut(Refusal):
    wanted: int
    found: int


class Stand(Aggregate, name="KioskStand"):
    left: int = 5

    def sell(self, count: int) -> None:
        if count > self.left:
            raise SoldOut(
                f"{self.id}: {count} wanted, {self.left} left", wanted=count, found=self.left
            )
        self.record(Sold(count=count))

    @applies(Sold)
    def _sold(self, event: Sold) -> None:
        self.left -= event.count


class Buy(Command, name="kiosk.buy", aggregate=Stand, key="id"):
    id: str
    count: int = 1


def stand(session: Session, id: str) -> Stand:
    """Return a stand, a new one if need be."""
    found = session.find(Stand, id)
    if found is None:
        found = Stand(id)
        session.add(found)
    return found


@command_handler(Buy, retry_on=Exception)
def buy(command: Buy, session: Session) -> int:
    it = stand(session, command.id)
    it.sell(command.count)
    return it.left


@contextmanager
def connected(url: str, **settings: Any) -> Iterator[CQRS]:
    """Give a client of the application that is closed at the end, results included."""
    cqrs = client(url, **settings)
    try:
        yield cqrs
    finally:
        cqrs.app.backend.result_consumer.stop()
        cqrs.app.close()


def client(url: str, **settings: Any) -> CQRS:
    """Return the application on a server."""
    made = Celery("kiosk", broker=url, backend=url, set_as_current=False)
    made.conf.update(broker_transport=TRANSPORT, broker_connection_retry_on_startup=True)
    made.conf.update(settings)
    return CQRS(made)


if "KIOSK_URL" in os.environ:
    app = client(os.environ["KIOSK_URL"]).app
    app.set_current()
