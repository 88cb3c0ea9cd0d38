"""A test helper that fails when an event class can't read any more what it has stored."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from datetime import datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cqrs_celery import Event, upcaster
from cqrs_celery.messages.message import MessageMeta
from cqrs_celery.messages.registry import Registry
from cqrs_celery.testing import check_schemas
from cqrs_celery.testing.schemas import WRITE, incompatibility, json_schema

Define = Callable[..., None]


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Registry:
    registry = Registry()
    monkeypatch.setattr("cqrs_celery.messages.message.registry", registry)
    monkeypatch.delenv(WRITE, raising=False)
    return registry


def define(name: str = "kept.made", /, version: int = 1, **fields: Any) -> None:
    options = {k[1:]: fields.pop(k) for k in list(fields) if k.startswith("_")}
    defaults = {k: v[1] for k, v in fields.items() if isinstance(v, tuple)}
    types = {k: v[0] if isinstance(v, tuple) else v for k, v in fields.items()}
    namespace = {"__annotations__": types, "__module__": "kept.domain", **defaults}
    MessageMeta("Made", (Event,), namespace, name=name, version=version, **options)


def committed(tmp_path: Path, own: Registry) -> Path:
    file = tmp_path / "schemas.json"
    check_schemas(file, write=True, registry=own)
    check_schemas(file, registry=own)
    return file


def test_what_is_unchanged_passes_and_the_file_says_what_it_is(tmp_path, own):
    define(name=str, count=(int, 0))
    file = committed(tmp_path, own)
    assert json.loads(file.read_text()) == {
        "kept.made": {
            "1": {
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "count": {"type": "integer", "default": 0},
                },
                "required": ["name"],
            }
        }
    }  # fmt: skip


def test_a_new_event_must_be_written_which_the_environment_may_ask_for(tmp_path, own, monkeypatch):
    define(name=str)
    file = tmp_path / "schemas.json"
    with pytest.raises(AssertionError, match=rf"lacks kept.made version 1: .* {WRITE}=1"):
        check_schemas(file, registry=own)
    assert not file.exists()
    monkeypatch.setenv(WRITE, "1")
    check_schemas(file, registry=own)
    assert file.exists()


def test_a_compatible_change_must_be_written_too(tmp_path, own):
    define(name=str)
    file = committed(tmp_path, own)
    define(name=str, count=(int, 0))
    with pytest.raises(AssertionError, match="or changed compatibly"):
        check_schemas(file, registry=own)
    check_schemas(file, write=True, registry=own)
    check_schemas(file, registry=own)


def test_an_incompatible_change_fails_and_is_not_written(tmp_path, own):
    define(name=str)
    file = committed(tmp_path, own)
    before = file.read_text()
    define(name=str, count=int)
    for write in (False, True):
        with pytest.raises(AssertionError) as failed:
            check_schemas(file, write=write, registry=own)
        assert r"$.count is required now" in str(failed.value)
        assert "Give it version 2, and write @upcaster('kept.made', 1)" in str(failed.value)
    assert file.read_text() == before


def test_a_version_that_is_gone_needs_an_upcaster(tmp_path, own):
    define(name=str)
    file = committed(tmp_path, own)
    registry = Registry()
    registry.add("event", "kept.made", 2, Event)
    own._by_key.clear()
    define(version=2, title=str)
    with pytest.raises(AssertionError, match=r"version 1 is gone: .*no upcaster leads there"):
        check_schemas(file, write=True, registry=own)
    upcaster("kept.made", 1, registry=own)(lambda data: {"title": data["name"]})
    check_schemas(file, write=True, registry=own)
    assert set(json.loads(file.read_text())["kept.made"]) == {"1", "2"}


@pytest.mark.parametrize(("type_", "is_fine"), [(str, True), (int, False)])
def test_an_alias_must_be_able_to_read_what_it_stands_for(tmp_path, own, type_, is_fine):
    define(name=str)
    file = committed(tmp_path, own)
    own._by_key.clear()
    define("kept.created", name=type_, _aliases=("kept.made",))
    if is_fine:
        check_schemas(file, write=True, registry=own)
    else:
        with pytest.raises(AssertionError, match=r"is read as kept.created, which can't"):
            check_schemas(file, write=True, registry=own)


def test_only_the_named_packages_are_looked_at(tmp_path, own):
    define(name=str)
    file = tmp_path / "schemas.json"
    check_schemas(file, "other", "kept.dom", write=True, registry=own)
    assert not file.exists()
    check_schemas(file, "kept", write=True, registry=own)
    assert file.exists()


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct):
    a: int


class InnerMore(msgspec.Struct):
    a: float
    b: str = ""


class Tree(msgspec.Struct):
    children: list[Tree]
    name: str = ""


class OtherTree(msgspec.Struct):
    children: list[OtherTree]
    name: int = 0


class Moment(msgspec.Struct):
    at: datetime
    of: Moment | None = None


class TextMoment(msgspec.Struct):
    at: str
    of: TextMoment | None = None


#: Types of a field, with values of each.
TYPES: list[tuple[Any, list[Any]]] = [
    (int, [0, -3]), (float, [0.5, 2.0]), (str, ["", "red"]), (bool, [True]),
    (int | None, [None, 3]), (str | None, [None, "blue"]), (list[int], [[], [1]]),
    (list[int | None], [[None, 1]]), (list[float], [[1.5]]), (dict[str, int], [{}, {"a": 1}]),
    (dict[str, Any], [{"a": "b"}]), (Colour, ["red", "blue"]), (Literal["red"], ["red"]),
    (Literal["red", 1], ["red", 1]), (datetime, ["2024-01-01T00:00:00Z"]), (Decimal, ["1.5"]),
    (UUID, ["00000000-0000-4000-8000-000000000000"]), (Any, [1, "x", None, [1]]),
    (Inner, [{"a": 1}]), (InnerMore, [{"a": 1.5, "b": "x"}]), (Inner | None, [None, {"a": 1}]),
    (datetime | None, [None, "2024-01-01T00:00:00"]), (list[time], [["10:00:00"]]),
    (dict[str, datetime | int], [{"a": 1, "b": "2024-01-01T00:00:00"}]),
    (Moment, [{"at": "2024-01-01T00:00:00", "of": {"at": "2024-01-01T00:00:00"}}]),
    (TextMoment, [{"at": "x", "of": {"at": "y"}}]),
    (Annotated[int, msgspec.Meta(ge=0)], [0, 5]), (Annotated[int, msgspec.Meta(ge=3, le=9)], [3]),
    (Annotated[str, msgspec.Meta(max_length=2)], ["", "ab"]), (tuple[int, str], [[1, "a"]]),
    (tuple[int, ...], [[1, 2]]), (Tree, [{"children": [{"children": [], "name": "x"}]}]),
    (OtherTree, [{"children": [{"children": [], "name": 5}]}]), (None, [None]), (bytes, ["eA=="]),
    (Annotated[str, msgspec.Meta(pattern="^a")], ["ab"]),
]  # fmt: skip


def struct(fields: dict[str, tuple[Any, bool]], *, refuse: bool = False) -> Any:
    """Make a class; a field that may be missing has a default."""
    return msgspec.defstruct(
        "Made",
        [(n, t, None) if optional else (n, t) for n, (t, optional) in fields.items()],
        kw_only=True,
        forbid_unknown_fields=refuse,
    )


fields = st.dictionaries(
    st.sampled_from("abc"), st.tuples(st.integers(0, len(TYPES) - 1), st.booleans()), max_size=3
)


@given(fields, fields, st.booleans(), st.data())
def test_what_is_said_to_be_compatible_is_read(old, new, refuse, data):
    """No pair of classes of which it says so fails at what the old one could have written."""
    writer = struct({n: (TYPES[i][0], optional) for n, (i, optional) in old.items()})
    reader = struct({n: (TYPES[i][0], o) for n, (i, o) in new.items()}, refuse=refuse)
    written = {}
    for name, (number, optional) in old.items():
        if not optional or data.draw(st.booleans()):
            written[name] = data.draw(st.sampled_from(TYPES[number][1]))
    msgspec.convert(written, writer, builtin_types=())
    why = incompatibility(json_schema(writer), json_schema(reader))
    if not why:
        msgspec.json.decode(json.dumps(written), type=reader)


def test_every_pair_of_types_that_is_said_to_be_compatible_is():
    for old_type, values in TYPES:
        for new_type, _ in TYPES:
            schemas = [json_schema(struct({"a": (t, False)})) for t in (old_type, new_type)]
            why = incompatibility(*schemas)
            if old_type is new_type:
                assert why == ""
            if not why:
                for value in values:
                    msgspec.convert(
                        {"a": value}, struct({"a": (new_type, False)}), builtin_types=()
                    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (int, float), (int, int | None), (int, int | str), (list[int], list[float]), (int, Any),
        (Colour, str), (Literal["red"], Colour), (Inner, InnerMore), (Inner, Inner | None),
        (dict[str, int], dict[str, int | None]), (Annotated[int, msgspec.Meta(ge=3)], int),
        (Annotated[int, msgspec.Meta(ge=3)], Annotated[int, msgspec.Meta(ge=1)]),
    ],
)  # fmt: skip
def test_what_is_wider_is_compatible(old, new):
    pair = [json_schema(struct({"a": (t, False)})) for t in (old, new)]
    assert incompatibility(*pair) == ""
    assert incompatibility(*reversed(pair)).startswith("$.a")
