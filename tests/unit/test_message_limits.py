"""A message that no worker would read is refused where it is made, and says what to do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from celery import Celery

from cqrs_celery import CQRS, Command, Event
from cqrs_celery.app.settings import read_settings
from cqrs_celery.errors import InvalidSetting, MalformedMessage, UnwritableMessage
from cqrs_celery.messages.message import MessageMeta
from cqrs_celery.messages.serializer import Serializer


class PlantTree(Command, name="limits.plant_tree"):
    id: str
    branches: Any = None


class TreePlanted(Event, name="limits.tree_planted"):
    branches: Any = None


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def endless() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.fixture
def serializer() -> Serializer:
    return Serializer("limits", max_bytes=2000)


@pytest.mark.parametrize("branches", [nested(64), nested(600), nested(5000), endless()])
@pytest.mark.parametrize("kind", [PlantTree, TreePlanted])
def test_a_message_nested_too_deep_names_its_field_the_limit_and_what_to_do(
    kind: Any, branches: Any, serializer: Serializer
) -> None:
    message = kind(branches=branches, **({"id": "1"} if kind is PlantTree else {}))
    for make in (serializer.encode, serializer.to_plain):
        with pytest.raises(MalformedMessage) as refused:
            make(message)
        assert refused.value.name == message.__registered__.name
        text = str(refused.value)
        assert "deeper than 64 levels" in text
        assert "'branches'" in text
        assert "Nothing was sent or stored" in text


class Branch(msgspec.Struct):
    """A type that holds itself."""

    next: Branch | None = None


def test_a_value_of_a_type_that_holds_itself_is_refused_if_it_is_too_deep(
    serializer: Serializer,
) -> None:
    # given
    cls: Any = MessageMeta("Grown", (Event,), {"__annotations__": {"root": Branch}})
    branch = Branch()
    for _ in range(62):
        branch = Branch(branch)
    # then one level more than fits is refused
    assert serializer.decode("event", *serializer.encode(cls(root=branch))).root == branch
    with pytest.raises(UnwritableMessage, match="deeper than 64 levels"):
        serializer.encode(cls(root=Branch(branch)))


def test_a_type_that_is_declared_deeper_than_a_message_may_be_is_refused_by_its_values(
    serializer: Serializer,
) -> None:
    # given
    hint: Any = int
    for _ in range(64):
        hint = list[hint]
    cls: Any = MessageMeta("Declared", (Event,), {"__annotations__": {"value": hint}})
    # then
    for levels in (1, 63):
        value = nested(levels)
        assert serializer.decode("event", *serializer.encode(cls(value=value))).value == value
    with pytest.raises(UnwritableMessage, match="deeper than 64 levels"):
        serializer.encode(cls(value=nested(64)))


def test_a_message_at_the_limit_is_made_and_read(serializer: Serializer) -> None:
    # given one level for the message itself
    command = PlantTree(id="1", branches=nested(63))
    # then
    assert serializer.from_plain("command", serializer.to_plain(command)) == command


def test_a_message_that_is_too_large_names_its_largest_field_and_the_setting(
    serializer: Serializer,
) -> None:
    command = PlantTree(id="1", branches="x" * 2000)
    for make in (serializer.encode, serializer.to_plain):
        with pytest.raises(MalformedMessage, match="cqrs_max_message_bytes") as refused:
            make(command)
        assert "'branches' has 2,002; accepted: up to 2,000" in str(refused.value)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("limits", set_as_current=False)
    yield app
    app.close()


def test_a_message_may_have_16_mib_and_a_setting_changes_it(app: Celery) -> None:
    assert read_settings(app).max_message_bytes == 16 * 1024 * 1024
    app.conf.cqrs_event_store = "memory://"
    app.conf.cqrs_max_message_bytes = 5000
    assert CQRS(app).runtime.serializer.max_bytes == 5000


@pytest.mark.parametrize("value", [0, 1023, "16MB", True, 2000.0, None])
def test_a_limit_that_is_none_is_refused(app: Celery, value: Any) -> None:
    app.conf.cqrs_max_message_bytes = value
    with pytest.raises(InvalidSetting, match="a whole number of bytes from 1024"):
        read_settings(app)


def test_a_deep_command_is_refused_by_the_public_call_and_its_log_is_silent(
    app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # given an application whose broker is nowhere
    app.conf.update(broker_url="redis://127.0.0.1:1/0", cqrs_event_store="memory://")
    cqrs = CQRS(app)
    # when a command of 600 nested lists is sent, then nothing is asked of the broker
    with caplog.at_level(logging.WARNING), pytest.raises(MalformedMessage, match="64 levels"):
        cqrs.send_command(PlantTree(id="1", branches=nested(600)))
    assert not caplog.records
