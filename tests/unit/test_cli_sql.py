"""`celery -A app cqrs` on an application whose events are in a SQL database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from cqrs_celery import CQRS
from cqrs_celery.backends.postgresql.rights import SEQUENCES
from cqrs_celery.backends.sql.rights import TABLES
from cqrs_celery.backends.sql.schema import VERSION_TABLE, create_schema
from cqrs_celery.backends.sql.tables import metadata
from cqrs_celery.cli import cqrs as command
from cqrs_celery.store.events import Subscriber
from tests.nodes import REPOSITORY

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
        (("schema", "check"), "is not in a SQL database, and has no tables: MemoryEventStore"),
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


def test_every_table_has_its_rights_and_the_page_has_them_all() -> None:
    assert set(TABLES) == {*metadata.tables, VERSION_TABLE}
    page = (REPOSITORY / "docs/how-to/keep-events-in-a-sql-database.md").read_text("utf-8")
    grants = [f"GRANT {', '.join(rights)} ON {table} TO" for table, rights in TABLES.items()]
    for grant in (*grants, *(f"GRANT USAGE ON SEQUENCE {one} TO" for one in SEQUENCES.values())):
        assert grant in page


#: Brokers that are not the reliable queue; nobody runs the second one.
OTHER_BROKERS = ["memory://", "amqp://127.0.0.1:1//"]


def with_subscribers(app: Any) -> Any:
    """Register two functions of one subscription and one of another; return the store."""
    store = app.cqrs.bare_store
    create_schema(store)
    head = ("", "", "", "", "")
    for name, topics, queue in (
        ("till.add", ("sold", "given"), "till"),
        ("till.take", ("sold",), "till"),
        ("mail.send", ("sold",), "mail"),
    ):
        store.outbox.register("shop", Subscriber(name, topics, queue, head))
    return store


def registered(store: Any) -> list[str]:
    return sorted(one.name for one in store.outbox.subscribers("shop"))


@pytest.mark.parametrize("broker", OTHER_BROKERS)
def test_with_another_broker_the_database_tells_who_gets_which_events(
    make_application: MakeApplication, broker: str
) -> None:
    app = make_application(broker)
    with_subscribers(app)

    result = run_cli(app, "subscriptions", "list", "--json")

    assert result.exit_code == 0, result.output
    unknown = {"waiting": None, "dead": None, "workers": None, "paused": False}
    assert json.loads(result.stdout) == [
        {"subscription": "mail", "task": "mail.send", "events": ["sold"], **unknown},
        {"subscription": "till", "task": "till.add", "events": ["given", "sold"], **unknown},
        {"subscription": "till", "task": "till.take", "events": ["sold"], **unknown},
    ]
    table = run_cli(app, "subscriptions", "list").output
    assert [line.split()[-1] for line in table.splitlines()[2:]] == ["?", "?", "?"]


@pytest.mark.parametrize("broker", OTHER_BROKERS)
def test_with_another_broker_a_removed_function_gets_no_more(
    make_application: MakeApplication, broker: str
) -> None:
    # given functions that the relay sends events to
    app = make_application(broker)
    store = with_subscribers(app)
    # when a whole subscription is removed, and nothing but shown, and not agreed to
    result = run_cli(app, "subscriptions", "remove", "till", "--dry-run")
    assert "till.add gets sold, given" in result.output
    assert run_cli(app, "subscriptions", "remove", "till", answer="n\n").exit_code == 1
    assert registered(store) == ["mail.send", "till.add", "till.take"]
    # and then really
    result = run_cli(app, "subscriptions", "remove", "till", answer="y\n")
    # then the other one is left
    assert result.exit_code == 0, result.output
    assert registered(store) == ["mail.send"]
    # and an unknown one is refused
    result = run_cli(app, "subscriptions", "remove", "till", "--yes")
    assert result.exit_code == 2
    assert "no subscription till is registered; there are: mail" in result.output


def test_a_purge_of_another_brokers_queue_is_left_to_celery(
    make_application: MakeApplication,
) -> None:
    app = make_application()
    store = with_subscribers(app)

    result = run_cli(app, "subscriptions", "remove", "mail", "--purge", "--yes")

    assert result.exit_code == 2
    assert "celery -A <app> purge -Q <subscription>" in result.output
    assert "mail.send" in registered(store)


def test_where_nothing_registers_subscriptions_their_list_says_so(
    make_application: MakeApplication,
) -> None:
    result = run_cli(make_application(cqrs_event_store="memory://"), "subscriptions", "list")

    assert result.exit_code == 2
    assert "is not the reliable queue" in result.output
