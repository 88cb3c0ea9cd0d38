"""`cqrs commands`: what is remembered of commands, and forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import celery
from click.testing import CliRunner

from cqrs_celery import CQRS
from cqrs_celery.backends.sql.schema import create_schema
from cqrs_celery.cli import cqrs
from cqrs_celery.store.events import CommandRecord, StreamAppend
from cqrs_celery.store.stream import StreamName
from cqrs_celery.testing.event_store_contract import events


def test_commands_that_have_expired_are_deleted_and_others_stay(tmp_path: Path) -> None:
    # given commands of which two have expired
    app = celery.Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(cqrs_event_store=f"sqlite:///{tmp_path / 'events.db'}")
    store: Any = CQRS(app).store
    create_schema(store)
    for name, ttl_s in (("old", -1), ("older", -60), ("new", 60)):
        stream = StreamName("shop", "Order", name)
        record = CommandRecord(name, "null", ttl_s)
        store.append([StreamAppend(stream, 0, events(1))], command=record)
    # when they are purged
    context: Any = type("Context", (), {"app": app})()
    result = CliRunner().invoke(cqrs, ["commands", "purge"], obj=context)
    # then those two are gone
    assert result.output == "deleted 2 command ids\n"
    assert store.find_command("new") is not None
    store.close()
    app.close()


def test_a_store_that_forgets_by_itself_has_none_to_purge() -> None:
    app = celery.Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(cqrs_event_store="memory://")
    CQRS(app)
    context: Any = type("Context", (), {"app": app})()
    result = CliRunner().invoke(cqrs, ["commands", "purge"], obj=context)
    assert result.exit_code == 2
    assert "forgets them itself" in result.output
    app.close()
