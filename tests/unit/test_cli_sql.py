"""`celery -A app cqrs` on an application whose events are in a SQL database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from cqrs_celery import CQRS
from cqrs_celery.cli import cqrs as command

MakeApplication = Callable[..., celery.Celery]


def run_cli(app: celery.Celery, *arguments: str, answer: str = "") -> Result:
    context = CLIContext(app=app, no_color=True, workdir=None)
    return CliRunner().invoke(command, list(arguments), obj=context, input=answer)


@pytest.fixture
def make_application(tmp_path: Path) -> Iterator[MakeApplication]:
    """Make applications whose store is an SQLite file, unless it is said to be another."""
    apps: list[Any] = []

    def make(broker: str = "memory://", **settings: Any) -> celery.Celery:
        app = celery.Celery("shop", broker=broker, set_as_current=False)
        settings.setdefault("cqrs_event_store", f"sqlite:///{tmp_path / 'events.db'}")
        app.conf.update(settings)
        apps.append(app)
        CQRS(app)
        return app

    yield make
    for app in apps:
        getattr(app.cqrs.bare_store, "close", lambda: None)()
        app.close()


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("schema", "check"), "events.db has version "),
        (("schema", "create"), "events.db has version "),
        (("schema", "sql"), "CREATE TABLE cqrs_events"),
        (("commands", "purge"), "deleted 0 command ids"),
    ],
)
def test_what_looks_after_the_tables_needs_no_broker_and_asks_nothing_of_it(
    make_application: MakeApplication, arguments: tuple[str, ...], output: str
) -> None:
    # given RabbitMQ, which nobody runs, and which would confirm nothing
    app = make_application("amqp://127.0.0.1:1//")
    assert run_cli(app, "schema", "create").exit_code == 0
    # when the tables are looked after
    result = run_cli(app, *arguments)
    # then they are
    assert result.exit_code == 0, result.output
    assert output in result.output


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("schema", "check"), "is in no SQL database, and has no tables: MemoryEventStore"),
        (("commands", "purge"), "and forgets them itself: MemoryEventStore"),
    ],
)
def test_a_store_in_no_sql_database_is_refused_by_its_name(
    make_application: MakeApplication, arguments: tuple[str, ...], output: str
) -> None:
    result = run_cli(make_application(cqrs_event_store="memory://"), *arguments)

    assert result.exit_code == 2
    assert output in result.output
    assert "object at" not in result.output
