"""What a new user forgets is told, in words that say what to do."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.signals import import_modules, worker_ready

from cqrs_celery import CQRS, Command, command_handler
from cqrs_celery.app.first_sends import UnconsumedQueues, UnorderedSends, open_first_sends
from cqrs_celery.dispatch import consuming
from cqrs_celery.dispatch.definitions import Definitions


class Knock(Command, name="hour.knock"):
    pass


class Ring(Command, name="bell.ring"):
    pass


@command_handler(Knock)
def knock(command: Knock) -> None: ...


@command_handler(Ring)
def ring(command: Ring) -> None: ...


class Sender:
    """A worker's consumer, as its signals have it."""

    def __init__(self, app: Celery) -> None:
        self.app = app


def start_worker(app: Celery, *queues: str) -> None:
    """Do what a worker does once it is ready, with -Q or without."""
    if queues:
        app.amqp.queues.select(list(queues))
    elif hasattr(app, "cqrs"):
        app.cqrs._hooks._on_worker_init(instance=Sender(app))
    worker_ready.send(sender=Sender(app))


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("hour", broker="memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def declared(monkeypatch: pytest.MonkeyPatch) -> Definitions:
    """Have two handlers alone."""
    mine = Definitions()
    for handler in (knock, ring):
        mine.add(handler.definition)
    monkeypatch.setattr(consuming, "definitions", mine)
    return mine


def test_a_worker_without_a_cqrs_app_says_so(
    app: Celery, declared: Definitions, caplog: pytest.LogCaptureFixture
) -> None:
    start_worker(app)
    (told,) = caplog.messages
    assert told == (
        "the Celery app hour has no CQRS, so nothing takes the messages of its 2 handlers and"
        " subscriptions (the first is tests.unit.test_first_hour.knock). Make one where the app is"
        " made: cqrs = CQRS(app)"
    )
    assert caplog.records[0].levelno == logging.WARNING


def test_a_worker_that_has_imported_no_handler_says_so(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consuming, "definitions", Definitions())
    cqrs = CQRS(app)
    start_worker(cqrs.app)
    (told,) = caplog.messages
    assert told == (
        "no handler or subscription is declared in this worker of hour, so it takes no commands and"
        " no events. Import their modules where the app is made, name them in Celery's setting"
        " include, or call cqrs.autodiscover()"
    )


def test_a_worker_that_consumes_no_handlers_queue_says_so(
    app: Celery, declared: Definitions, caplog: pytest.LogCaptureFixture
) -> None:
    cqrs = CQRS(app)
    start_worker(cqrs.app, "celery")
    (told,) = caplog.messages
    assert told == (
        "this worker of hour consumes no queue of a handler or subscription: it consumes celery;"
        " those are bell.commands, hour.commands. Start it without -Q, or with -Q"
        " bell.commands,hour.commands"
    )


@pytest.mark.parametrize("queues", [(), ("hour.commands",)], ids=["all", "chosen"])
def test_a_worker_that_takes_messages_of_handlers_says_nothing(
    app: Celery, declared: Definitions, caplog: pytest.LogCaptureFixture, queues: tuple[str, ...]
) -> None:
    cqrs = CQRS(app)
    start_worker(cqrs.app, *queues)
    assert not caplog.messages


def test_a_worker_that_keeps_events_in_memory_says_what_becomes_of_them(
    app: Celery, declared: Definitions, caplog: pytest.LogCaptureFixture
) -> None:
    app.conf.cqrs_event_store = "memory://"
    cqrs = CQRS(app)
    start_worker(cqrs.app)
    (told,) = caplog.messages
    assert told == (
        "this worker of hour has cqrs_event_store = 'memory://': each of its processes has events"
        " of its own, which no other process sees, and which are lost when it ends. Name a store"
        " that processes share: 'broker', or the URL of a SQL database"
    )


def test_a_worker_of_celery_alone_says_nothing(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(consuming, "definitions", Definitions())
    start_worker(app)
    assert not caplog.messages


# ------------------------------------------------------------ nobody takes what is sent


def wait_for_looks() -> None:
    for thread in threading.enumerate():
        if thread.name == "cqrs-first-send":
            thread.join(10)
            assert not thread.is_alive()


def test_the_first_command_to_a_queue_that_nobody_consumes_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a broker that counts how often it is asked
    asked: list[str] = []

    def is_consumed(queue: str) -> bool:
        asked.append(queue)
        return queue == "hour.commands"

    queues = UnconsumedQueues(is_consumed)
    # when many commands are sent
    for _ in range(3):
        queues.note_sent("hour.commands", "hour.knock")
        queues.note_sent("bells", "bell.ring")
        wait_for_looks()
    # then it is asked once for each queue
    assert asked == ["hour.commands", "bells"]
    (told,) = caplog.messages
    assert told == (
        "bell.ring was sent to the queue bells, which no live worker consumes: it waits there."
        " Start a worker that imports its handler, without -Q or with -Q bells;"
        " `celery -A <app> cqrs queues` shows who consumes what"
    )


@pytest.mark.parametrize(
    ("transport", "is_stock"),
    [
        ("redis", True), ("cqrs_celery.transport.Transport", False), ("reliable-redis", False),
        ("memory", False), ("cqrs_celery.NoTransport", False), ("nowhere", False),
    ],
)  # fmt: skip
def test_only_kombu_s_own_redis_is_asked_whether_order_is_lost(
    transport: str, *, is_stock: bool
) -> None:
    app = Celery("hour", broker="redis://localhost:1", set_as_current=False)
    app.conf.broker_transport = transport
    sends = open_first_sends(app, is_reliable=False)
    assert isinstance(sends, UnorderedSends) is is_stock


def test_no_sender_waits_for_the_broker_or_hears_of_it(caplog: pytest.LogCaptureFixture) -> None:
    # given a broker that does not answer, and then breaks
    gate = threading.Event()

    def is_consumed(queue: str) -> bool:
        gate.wait(10)
        raise ConnectionError("gone")

    UnconsumedQueues(is_consumed).note_sent("bells", "bell.ring")
    # then the sender is here already
    gate.set()
    wait_for_looks()
    assert not caplog.messages


# ------------------------------------------------------------ modules are found


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Make a package with handlers, and one with nothing."""
    for name in ("hour_shop", "hour_empty"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    for module in ("handlers", "subscriptions"):
        (tmp_path / "hour_shop" / f"{module}.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "hour_shop"
    for name in [name for name in sys.modules if name.startswith(("hour_shop", "hour_empty"))]:
        del sys.modules[name]


@pytest.mark.parametrize("force", [False, True], ids=["a worker", "at once"])
def test_handlers_and_subscriptions_of_packages_are_imported(
    app: Celery, package: str, *, force: bool
) -> None:
    cqrs = CQRS(app)
    cqrs.autodiscover([package, "hour_empty"], force=force)
    found = [f"{package}.handlers" in sys.modules, f"{package}.subscriptions" in sys.modules]
    assert found == [force, force]
    # a worker imports them before it chooses its queues
    import_modules.send(sender=app)
    assert f"{package}.handlers" in sys.modules
    assert f"{package}.subscriptions" in sys.modules


def test_packages_of_the_current_folder_are_found_as_celery_s_imports_are(
    app: Celery, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a package that is in the current folder alone, whose handlers import its neighbour
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hour_shop" / "handlers.py").write_text("import hour_empty")
    # when a worker starts
    CQRS(app).autodiscover([package])
    import_modules.send(sender=app)
    # then its modules are found, and the path is as before
    assert f"{package}.handlers" in sys.modules
    assert f"{package}.subscriptions" in sys.modules
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize("name", ["hour_sop", "hour_sop.stock"])
def test_a_package_that_is_not_found_is_named_with_what_to_do(app: Celery, name: str) -> None:
    with pytest.raises(
        ModuleNotFoundError, match=f"autodiscover.*{name}.*or install it"
    ) as refused:
        CQRS(app).autodiscover([name], force=True)
    assert refused.value.name == "hour_sop"


def test_what_a_module_lacks_is_not_mistaken_for_the_package(
    app: Celery, package: str, tmp_path: Path
) -> None:
    (tmp_path / package / "handlers.py").write_text("import hour_nowhere")
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'hour_nowhere'$"):
        CQRS(app).autodiscover([package], force=True)


def test_without_names_djangos_apps_are_meant(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        app, "autodiscover_tasks", lambda *args, **options: asked.append((args, options))
    )
    CQRS(app).autodiscover()
    assert asked == [
        ((None,), {"related_name": "handlers", "force": False}),
        ((None,), {"related_name": "subscriptions", "force": False}),
    ]


DJANGO = """
    import os, sys
    import django
    from django.conf import settings

    settings.configure(INSTALLED_APPS=["hour_shop", "hour_empty"])
    os.environ["DJANGO_SETTINGS_MODULE"] = "hour_settings"
    django.setup()

    from celery import Celery
    from cqrs_celery import CQRS

    app = Celery("hour", broker="memory://")
    CQRS(app).autodiscover()
    app.loader.import_default_modules()
    print(*sorted(name for name in sys.modules if name.startswith("hour_")))
"""


def test_handlers_of_djangos_apps_are_found(package: str, tmp_path: Path) -> None:
    (tmp_path / "hour_settings.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DJANGO)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.stdout.split() == [
        "hour_empty", package, f"{package}.handlers", f"{package}.subscriptions"
    ], done.stderr  # fmt: skip
