"""`celery -A app cqrs outbox status` shows how far which relay is, as far as it can be told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result
from kombu import pools

from cqrs_celery import CQRS
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli import cqrs as command
from cqrs_celery.testing.event_store_contract import BOLT, append, events
from cqrs_celery.transport import TRANSPORT
from tests.nodes import free_port

Make = Callable[[str, str], Any]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Make applications that share a database, each given its name and its broker."""
    made: list[CQRS] = []

    def application(name: str, broker: str) -> CQRS:
        app = celery.Celery(name, broker=broker, set_as_current=False)
        app.conf.update(
            broker_transport=TRANSPORT, cqrs_event_store=f"sqlite:///{tmp_path / 'events.db'}"
        )
        cqrs = CQRS(app)
        create_schema(cqrs.store)  # type: ignore[arg-type]
        made.append(cqrs)
        return cqrs

    yield application
    for cqrs in made:
        cqrs.store.close()
        cqrs.app.close()
    pools.reset()


def status(cqrs: CQRS, *options: str) -> Result:
    context = CLIContext(app=cqrs.app, no_color=True, workdir=None)
    return CliRunner().invoke(command, ["outbox", "status", *options], obj=context)


def lead(cqrs: Any) -> None:
    """Become the active relay of an application."""
    leadership, broker_id = cqrs.relay.leadership, cqrs.relay.destination.broker_id()
    assert leadership.claim(broker_id)


def test_an_application_that_another_ones_relay_serves_names_that_relay(
    make: Make, redis_url: str
) -> None:
    # given two applications with one broker, and nobody's relay
    shop, till = make("shop", redis_url), make("till", redis_url)
    assert json.loads(status(shop, "--json").stdout)["active_relay"] is None
    # when the relay of one of them leads
    lead(till)
    # then it is the active relay of both
    for cqrs in (shop, till):
        row = json.loads(status(cqrs, "--json").stdout)
        assert row["active_relay"]
        assert row["application"] == "till"
        assert f"{row['active_relay']} (till)" in status(cqrs).output


def test_another_brokers_relay_is_not_taken_for_the_own_one(make: Make, redis_url: str) -> None:
    # given two applications in one database, each with a broker of its own
    shop, till = make("shop", redis_url), make("till", f"{redis_url.rpartition('/')[0]}/1")
    # when the relay of one of them leads
    lead(till)
    # then the other one has none
    assert json.loads(status(shop, "--json").stdout)["active_relay"] is None


def test_without_the_broker_what_the_database_knows_is_shown(make: Make) -> None:
    # given events, and a broker that does not run
    cqrs = make("shop", f"redis://127.0.0.1:{free_port()}/0")
    append(cqrs.store, BOLT, 0, *events(3))
    # when the status is asked for
    result = status(cqrs)
    # then the last position is there, and it is said why the rest is not
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].split()[1:5] == ["3", "?", "?", "?"]
    assert "does not answer" in result.stderr
    row = json.loads(status(cqrs, "--json").stdout)
    assert (row["last"], row["events_behind"]) == (3, None)
    assert "does not answer" in row["error"]
