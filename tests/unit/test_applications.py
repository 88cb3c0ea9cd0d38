"""Several applications in one process: routes are theirs, and those that are gone are forgotten."""

from __future__ import annotations

import gc
import re
import threading
import weakref
from typing import Any

import pytest
from celery import Celery

from cqrs_celery import CQRS, Aggregate, Command, Event, Session, command_handler, subscribes
from cqrs_celery.dispatch import runtime
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.runtime import current_app
from cqrs_celery.dispatch.sending import route
from cqrs_celery.errors import DuplicateRegistration
from cqrs_celery.testing.scenario import in_memory


class Planted(Event, name="garden.planted"):
    pass


class Bed(Aggregate):
    pass


class Plant(Command, name="garden.plant", aggregate=Bed, key="id"):
    id: str


#: What the handler does first.
inside: list[Any] = []


@command_handler(Plant)
def plant(command: Plant, session: Session) -> None:
    while inside:
        inside.pop()()
    bed = session.find(Bed, command.id) or Bed(command.id)
    bed.record(Planted())
    session.add(bed)


def application(name: str = "garden", **settings: Any) -> CQRS:
    app = Celery(name)
    app.conf.update(
        cqrs_event_store="memory://", task_always_eager=True, task_eager_propagates=True, **settings
    )
    return CQRS(app)


@pytest.mark.parametrize(
    ("settings", "options", "queue"),
    [
        ({}, {}, "garden.commands"),
        ({}, {"queue": "elsewhere"}, "elsewhere"),
        ({"task_routes": {"garden.*": {"queue": "routed"}}}, {}, None),
        ({"task_routes": {"other.*": {"queue": "routed"}}}, {}, "garden.commands"),
    ],
)
def test_a_command_goes_home_unless_somebody_says_otherwise(
    settings: dict[str, Any], options: dict[str, Any], queue: str | None
) -> None:
    cqrs = application(**settings)
    options = dict(options)
    route(cqrs.app, "garden.plant", options, home_queue="garden.commands")
    assert options.get("queue") == queue


def test_an_application_that_is_gone_is_forgotten() -> None:
    # given an application, and one made after it that is gone
    kept = application()
    gone = application("gone")
    reference = weakref.ref(gone)
    assert gone.app in runtime._applications
    kept.app.set_current()
    # when nobody holds it
    del gone
    gc.collect()
    # then nothing of it is left, and what is declared afterwards does not fail
    assert reference() is None
    assert all(source() is not None for source in runtime._applications.values())


# ------------------------------------------------------------ names that are taken


def test_a_second_cqrs_of_one_application_is_refused_and_both_places_are_named() -> None:
    cqrs = application()
    with pytest.raises(DuplicateRegistration) as refused:
        CQRS(cqrs.app)
    here = r"\S*test_applications\.py:\d+"
    assert re.fullmatch(
        rf"CQRS\(app\) was called twice for Celery's app 'garden', at {here} and at {here}: a"
        r" second one would have an event store of its own\. Use app\.cqrs, which is the first, and"
        r" give it there what it needs\.",
        str(refused.value),
    )
    # and the first is as it was
    assert cqrs.app.cqrs is cqrs
    assert Plant(id="rose").delay().get()["position"] == 1


class Water(Command, name="garden.water.beds"):
    pass


class Rake(Command, name="orchard.rake"):
    pass


TASK_NAME = (
    r"the task name '{name}' is claimed by the handler of the command {command},"
    r" tests\.unit\.test_applications\.\S+ \(\S*test_applications\.py:\d+\), and by a function of"
    r" the subscription '{subscription}', tests\.unit\.test_applications\.\S+"
    r" \(\S*test_applications\.py:\d+\): one of them would never run\. Rename the command, the"
    r" function, or the subscription of one of them\."
)


def test_a_command_and_a_subscription_with_one_task_name_are_refused_where_the_second_is() -> None:
    @command_handler(Water)
    def water(command: Water) -> None: ...

    with pytest.raises(DuplicateRegistration) as refused:

        @subscribes(Planted, subscription="garden.water")
        def beds(event: Planted) -> None: ...

    expected = TASK_NAME.format(
        name="garden.water.beds", command="Water", subscription="garden.water"
    )
    assert re.fullmatch(expected, str(refused.value))
    # and what was refused is not declared
    assert not any(d.function.__name__ == "beds" for d in definitions.all())


def test_a_name_with_its_application_and_one_without_are_found_by_the_application() -> None:
    # given a command whose name begins with its application, and a function named without it
    @command_handler(Rake)
    def rake_beds(command: Rake) -> None: ...

    @subscribes(Planted)
    def rake(event: Planted) -> None: ...

    # then they go together in another application, and not in that one
    application("farm").check_handlers()
    expected = TASK_NAME.format(name="orchard.rake", command="Rake", subscription="rake")
    with pytest.raises(DuplicateRegistration) as refused:
        application("orchard").check_handlers()
    assert re.fullmatch(expected, str(refused.value))


def test_an_application_in_use_refuses_the_name_where_it_is_declared() -> None:
    # given an application that has its tasks already
    cqrs = application("orchard")
    cqrs.app.finalize()

    @command_handler(Rake)
    def rake_beds(command: Rake) -> None: ...

    # then a function with the name is refused, and not declared
    with pytest.raises(DuplicateRegistration, match=r"the task name 'orchard\.rake' is claimed"):

        @subscribes(Planted)
        def rake(event: Planted) -> None: ...

    assert not any(d.function.__name__ == "rake" for d in definitions.all())
    cqrs.check_handlers()


def test_a_plain_task_with_a_handlers_name_is_refused() -> None:
    cqrs = application()

    @cqrs.app.task(name="garden.plant", shared=False)
    def plain() -> None: ...

    with pytest.raises(DuplicateRegistration) as refused:
        cqrs.check_handlers()
    assert re.fullmatch(
        r"the task name 'garden\.plant' is claimed by the Celery task tests\.unit\.\S+plain"
        r" \(\S*test_applications\.py:\d+\) and by tests\.unit\.test_applications\.plant"
        r" \(\S*test_applications\.py:\d+\): one of them would never run\. Rename one of them\.",
        str(refused.value),
    )


# ------------------------------------------------------------ which one a message goes to


def test_what_a_handler_sends_without_a_prefix_goes_to_its_own_application(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given two applications, of which another one is the newest and nobody's current one
    first, newest = application("garden"), application("meadow")
    sent: list[str] = []

    class Weed(Command, name="weed_bed"):
        pass

    for cqrs in (first, newest):
        monkeypatch.setattr(
            cqrs, "send_command", lambda command, name=cqrs.app.main, **_: sent.append(name)
        )
    inside.append(lambda: Weed().delay())
    # when a handler of the first one sends
    first.execute(Plant(id="bed"))
    # then it is the first one's
    assert sent == ["garden"]


def test_a_commands_prefix_chooses_its_application_in_every_thread() -> None:
    # given two applications, of which the other is Celery's current one
    garden, farm = application("garden"), application("farm")
    farm.app.set_current()
    assert garden.app is not farm.app
    sent: list[Any] = []

    def send() -> None:
        sent.append(Plant(id="rose").delay().get()["position"])
        sent.append(plant.delay(Plant(id="tulip")).get()["position"])

    # when a command is sent by its class and by its handler, here and in another thread
    send()
    thread = threading.Thread(target=send)
    thread.start()
    thread.join()
    # then it went to the application that its name begins with
    assert sent == [1, 2, 3, 4]
    assert {one.stream.application for one in garden.store.read_all()} == {"garden"}
    assert list(farm.store.read_all()) == []


def test_a_setting_that_names_the_application_counts() -> None:
    # given an application whose name is set, and a newer one
    garden = application("plot", cqrs_application="garden")
    farm = application("farm")
    # when a command of it is sent
    Plant(id="rose").delay()
    # then it went there
    assert len(garden.store.read_all()) == 1
    assert not farm.store.read_all()


def test_a_command_of_an_application_that_is_not_here_is_sent_by_the_current_one() -> None:
    class Mow(Command, name="estate.mow"):
        pass

    garden, farm = application("garden"), application("farm")
    garden.app.set_current()
    assert current_app("Mow", Mow.__registered__.name) is garden.app
    farm.app.set_current()
    assert current_app("Mow", Mow.__registered__.name) is farm.app


def test_nothing_leaves_a_test_that_plays_in_memory() -> None:
    # given an application in use, and a test whose application has another name
    garden = application("garden")
    with in_memory("scene") as scene:
        # when a command of the first one's name is sent in the test
        Plant(id="rose").delay()
        # then it stays there
        assert scene.sent == [Plant(id="rose")]
        assert len(scene.store.read_all()) == 1
    assert not garden.store.read_all()
