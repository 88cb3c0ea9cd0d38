"""What a new user mistakes is an error of the package, in words that say what to write."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from cqrs_celery import CQRS, Aggregate, Command, Event, applies, command_handler
from cqrs_celery.errors import AggregateNotConstructible, RegistrationError
from cqrs_celery.testing.scenario import InMemoryCQRS


class Put(Event, name="mistakes.put"):
    count: int


class Box(Aggregate, name="MistakesBox"):
    @applies(Put)
    def _put(self, event: Put) -> None: ...


class WithoutSuper(Aggregate, name="MistakesWithoutSuper"):
    def __init__(self, id: str) -> None:
        self.count = 0


class Fill(Command, name="mistakes.fill", aggregate=Box, key="id"):
    id: str
    count: int = 1


@command_handler(Fill)
def fill(command: Fill) -> None: ...


# ------------------------------------------------------------ sending a command as a Celery task


@pytest.mark.parametrize(
    ("args", "fields", "text"),
    [
        ((), {"id": "42", "count": 5}, "2 arguments. Write Fill(id=…, count=…).delay()"),
        ((), {"id": "42"}, "one of type str. Write Fill(id=…).delay()"),
        (("42", 5), {}, "2 arguments. Write Fill(…).delay()"),
        (("42",), {}, "one of type str. Write Fill(…).delay()"),
        ((), {}, "0 arguments. Write Fill(…).delay()"),
        ((Put(count=1),), {}, "one of type Put. Write Fill(…).delay()"),
    ],
)
def test_a_command_s_fields_as_a_tasks_arguments_are_refused(
    in_memory_cqrs: InMemoryCQRS, args: Any, fields: Any, text: str
) -> None:
    for send in (fill.delay, lambda *a, **k: fill.apply_async(a, k, countdown=1)):
        with pytest.raises(
            TypeError, match=re.escape(f"takes its message alone; found {text}")
        ) as told:
            send(*args, **fields)
        assert str(told.value).startswith("mistakes.fill takes its message alone")
        assert ", or fill.delay(Fill(" in str(told.value)
    assert not in_memory_cqrs.sent


def test_a_command_and_its_plain_values_are_sent(in_memory_cqrs: InMemoryCQRS) -> None:
    fill.delay(Fill(id="42"))
    fill.delay(command=Fill(id="42"))
    fill.delay({"type": "mistakes.fill", "version": 1, "data": {"id": "42"}})
    assert in_memory_cqrs.sent == [Fill(id="42")] * 3


# ------------------------------------------------------------ the wrong kind of thing


def given_to(cqrs: InMemoryCQRS, use: Callable[[Any], Any]) -> Any:
    with cqrs.session() as session:
        return use(session)


#: Stands for anything that is not what is asked for.
wrong: Any = Put

ADDED = (
    "session.add was given {}; expected an aggregate. An aggregate records an event by"
    " aggregate.record(event), and the session stores both"
)
ASKED = (
    "{} is no aggregate; expected a subclass of Aggregate, and an id:"
    " session.get(InventoryItem, '42')"
)
MISTAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "an event is added": (lambda s: s.add(wrong(count=1)), ADDED.format("Put(count=1)")),
    "a class is added": (lambda s: s.add(Box), ADDED.format(Box)),
    "an event is got": (lambda s: s.get(wrong, "42"), ASKED.format("Put")),
    "a name is looked for": (lambda s: s.find("Box", "42"), ASKED.format("'Box'")),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_is_no_aggregate_is_refused_by_a_session(
    in_memory_cqrs: InMemoryCQRS, mistake: str
) -> None:
    use, text = MISTAKES[mistake]
    with pytest.raises(TypeError) as told:
        given_to(in_memory_cqrs, use)
    assert str(told.value) == text


def test_what_is_no_celery_application_is_refused() -> None:
    text = "CQRS was given 'inventory'; expected a Celery application: CQRS(Celery('inventory'))"
    name: Any = "inventory"
    with pytest.raises(TypeError, match=re.escape(text)):
        CQRS(name)


@pytest.mark.parametrize(
    "use",
    [
        lambda box: box.record(Put(count=1)),
        lambda box: box.id,
        lambda box: box.version,
        lambda box: box.pending_events,
    ],
)
def test_an_aggregate_that_passed_no_id_on_says_so(use: Callable[[Any], Any]) -> None:
    with pytest.raises(AggregateNotConstructible) as told:
        use(WithoutSuper("42"))
    assert str(told.value).endswith(
        " was used before it had an id: expected its __init__ to call super().__init__(id) first"
    )
    assert "test_first_mistakes.WithoutSuper" in str(told.value)
    assert told.value.aggregate_type == "MistakesWithoutSuper"


def test_a_misspelt_class_argument_of_an_aggregate_is_refused_with_the_one_that_was_meant() -> None:
    text = (
        "has the class argument 'snapshot_evry', which does not exist; did you mean"
        " 'snapshot_every'? There are: name, alias_of, strict, snapshot_every, snapshot_policy,"
        " snapshot_version."
    )
    with pytest.raises(RegistrationError, match=re.escape(text)):

        class Misspelt(Aggregate, snapshot_evry=3):
            pass


def test_a_class_argument_that_another_base_takes_is_its_own() -> None:
    class Coloured:
        colour: str

        def __init_subclass__(cls, *, colour: str, **options: Any) -> None:
            super().__init_subclass__(**options)
            cls.colour = colour

    class Red(Aggregate, Coloured, name="MistakesRed", colour="red"):
        pass

    assert Red.colour == "red"
