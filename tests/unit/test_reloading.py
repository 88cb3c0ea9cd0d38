"""Modules are reloaded, as notebooks do, and nothing is lost or left over, whichever it is."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS
from cqrs_celery.dispatch.definitions import definitions

MESSAGES = """
    from cqrs_celery import Command, Event, Message, Query

    class Poured(Event, name="reload.poured"):
        litres: int

    class Spilt(Poured, name="reload.spilt"):
        pass

    class Noticed(Message, name="reload.noticed"):
        text: str = ""

    class HowMuch(Query, name="reload.how_much"):
        id: str

    class Pour(Command, name="reload.pour"):
        id: str
        litres: int
"""

DOMAIN = """
    from cqrs_celery import Aggregate, applies
    from reload_messages import Poured, Spilt

    class Barrel(Aggregate, name="ReloadBarrel"):
        litres: int = 0

        def pour(self, litres):
            self.record(Poured(litres=litres))

        def spill(self, litres):
            self.record(Spilt(litres=litres))

        @applies(Poured)
        def _poured(self, event):
            self.litres += event.litres

        @applies(Spilt)
        def _spilt(self, event):
            self.litres -= event.litres
"""

HANDLERS = """
    from cqrs_celery import Session, command_handler, query_handler, subscribes
    from reload_domain import Barrel
    from reload_messages import HowMuch, Noticed, Pour, Poured

    seen = []

    @command_handler(Pour)
    def pour(command: Pour, session: Session) -> int:
        barrel = session.find(Barrel, command.id) or Barrel(command.id)
        session.add(barrel)
        barrel.pour(command.litres)
        barrel.spill(1)
        return barrel.litres

    @query_handler(HowMuch)
    def how_much(query: HowMuch) -> str:
        return query.id

    @subscribes(Poured, subscription="reload.levels")
    def level(event: Poured) -> None:
        seen.append(type(event).__name__)

    @subscribes(Noticed, subscription="reload.notices")
    def notice(message: Noticed) -> None:
        seen.append(message.text)
"""

TEXTS = {"reload_messages": MESSAGES, "reload_domain": DOMAIN, "reload_handlers": HANDLERS}


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """Import messages, domain and handlers from files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text in TEXTS.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    yield {name: importlib.import_module(name) for name in TEXTS}
    for name in TEXTS:
        del sys.modules[name]
    for key, definition in list(definitions._by_key.items()):
        if definition.function.__module__ == "reload_handlers":
            del definitions._by_key[key]


@pytest.fixture
def cqrs() -> CQRS:
    app = Celery("reload", changes={"cqrs_event_store": "memory://", "task_always_eager": True})
    return CQRS(app)


@pytest.mark.parametrize(
    "reloaded",
    [
        ["reload_messages"],
        ["reload_domain"],
        ["reload_handlers"],
        ["reload_messages", "reload_domain"],
        ["reload_messages", "reload_handlers"],
        ["reload_handlers", "reload_messages"],
        ["reload_messages", "reload_domain", "reload_handlers"],
        ["reload_messages", "reload_messages"],
    ],
    ids="-".join,
)
@pytest.mark.parametrize("holds_old", [False, True], ids=["sends the new", "sends the old"])
def test_after_a_reload_everything_works_and_runs_once(
    modules: dict[str, ModuleType], cqrs: CQRS, reloaded: list[str], *, holds_old: bool
) -> None:
    # given an application in use, and somebody who has imported the classes
    old: dict[str, Any] = dict(vars(modules["reload_messages"]))
    assert cqrs.execute(old["Pour"](id="oak", litres=10)).value == 9
    # when modules are reloaded, some of them or all, in whatever order
    for name in reloaded:
        modules[name] = importlib.reload(modules[name])
    modules["reload_handlers"].seen.clear()
    sent = old if holds_old else vars(modules["reload_messages"])
    # then commands find their handler, whose aggregate applies its history
    assert cqrs.execute(sent["Pour"](id="oak", litres=5)).value == 13
    assert sent["Pour"](id="oak", litres=5).delay().get()["value"] == 17
    # and queries, subscriptions and messages reach theirs, each once
    assert cqrs.query(sent["HowMuch"](id="oak")) == "oak"
    cqrs.publish(sent["Noticed"](text="low"))
    assert modules["reload_handlers"].seen == ["Poured", "Spilt"] * 2 + ["low"]


def test_a_reloaded_class_is_what_is_read_from_then_on(
    modules: dict[str, ModuleType], cqrs: CQRS, tmp_path: Path
) -> None:
    # given a stored event
    cqrs.execute(modules["reload_messages"].Pour(id="oak", litres=10))
    # when its module is reloaded with another field, and that alone
    text = textwrap.dedent(MESSAGES).replace(
        "litres: int\n", "litres: int\n    of: str = 'wine'\n", 1
    )
    write(tmp_path / "reload_messages.py", text)
    messages = importlib.reload(modules["reload_messages"])
    # then the event is read as the new class, and the definitions are of it
    stored, _ = cqrs.store.read_all()
    event = cqrs.runtime.serializer.decode("event", stored.event.type, 1, stored.event.data)
    assert type(event) is messages.Poured
    assert event.of == "wine"
    assert definitions.subscribers_of(messages.Poured)[0].messages == (messages.Poured,)
    handler = definitions.handler_of(messages.Pour)
    assert handler is not None
    assert handler.messages == (messages.Pour,)


def write(path: Path, text: str) -> None:
    """Write a module so that a reload within the same second reads it."""
    path.write_text(text)
    importlib.invalidate_caches()
    for compiled in path.parent.glob("__pycache__/*"):
        compiled.unlink()
