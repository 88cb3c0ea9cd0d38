"""Events that change: upcasters, chains, splits, drops, aliases, and fields that nobody knows."""

from __future__ import annotations

import copy
import itertools
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from celery import Celery
from hypothesis import given, settings
from hypothesis import strategies as st

from cqrs_celery import (
    CQRS,
    Aggregate,
    Event,
    EventData,
    Message,
    RecordedEvent,
    Session,
    applies,
    subscribes,
    upcaster,
)
from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.dispatch.definitions import definitions
from cqrs_celery.dispatch.envelope import pack_event, unpack_events
from cqrs_celery.dispatch.handler import task_of
from cqrs_celery.dispatch.topics import topics_of
from cqrs_celery.domain.lifecycle import build, replay
from cqrs_celery.errors import (
    DuplicateRegistration,
    EventOutOfOrder,
    MalformedMessage,
    RegistrationError,
    UnhandledEvent,
    UnknownMessageType,
    UpcastFailed,
)
from cqrs_celery.messages.message import Command, MessageMeta, Query, unknown_fields_of
from cqrs_celery.messages.registry import Registry
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.store.decoding import recorded_events, replayed_events
from cqrs_celery.store.events import NewEvent, StreamAppend
from cqrs_celery.store.stream import ANY_VERSION, StreamName

APPLICATION = "depot"
STREAM = StreamName(APPLICATION, "Shelf", "7")


class ItemRenamed(Event, name="depot.item_renamed"):
    name: str


class ItemMoved(Event, name="depot.item_moved", version=3, aliases=("depot.item_shifted",)):
    place: str
    count: int


class ItemKept(Event, name="depot.item_kept"):
    pass


@upcaster("depot.item_moved", 1)
def moved_v1(data: dict[str, Any]) -> dict[str, Any]:
    data["place"] = data.pop("shelf")
    return data


@upcaster("depot.item_moved", 2)
def moved_v2(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "count": 1}


@upcaster("depot.item_changed", 1, into=(ItemRenamed, ItemMoved))
def changed_v1(data: dict[str, Any]) -> list[EventData]:
    return [
        EventData("depot.item_renamed", 1, {"name": data["name"]}),
        EventData("item_moved", 2, {"place": data["place"]}),
    ]


@upcaster("depot.item_counted", 1)
def counted_v1(data: dict[str, Any]) -> list[EventData]:
    return []


class Shelf(Aggregate, strict=True):
    log: list[tuple[str, int]] = []  # noqa: RUF012

    @applies(ItemRenamed, ItemMoved, ItemKept)
    def _noted(self, event: Event) -> None:
        self.log.append((type(event).__name__, self.version))


log: Any = SimpleNamespace(renamed=[], moved=[], fail_at_place=None)


@subscribes(ItemRenamed, subscription="depot.list")
def on_renamed(event: ItemRenamed, recorded: RecordedEvent[ItemRenamed]) -> None:
    log.renamed.append((event.name, recorded.version, recorded.part, recorded.parts))


@subscribes(ItemMoved, subscription="depot.list")
def on_moved(event: ItemMoved, recorded: RecordedEvent[ItemMoved], session: Session) -> None:
    log.moved.append((event.place, event.count, recorded.version, recorded.part))
    if event.place == log.fail_at_place:
        raise ValueError("no such place")


@pytest.fixture(autouse=True)
def empty_log() -> None:
    log.renamed, log.moved, log.fail_at_place = [], [], None


@pytest.fixture
def serializer() -> Serializer:
    return Serializer(APPLICATION)


def old(name: str, version: int, number: int = 1, /, **data: Any) -> NewEvent:
    encoded = json.dumps(data).encode()
    return NewEvent(f"event-{number}", name, version, datetime.now(UTC), encoded)


HISTORY = [
    old("depot.item_moved", 1, 1, shelf="A1"),
    old("depot.item_changed", 1, 2, name="bolt", place="B2"),
    old("depot.item_counted", 1, 3, count=5),
    old("depot.item_shifted", 2, 4, place="C3"),
    old("depot.item_moved", 3, 5, place="D4", count=4),
    old("depot.item_counted", 1, 6, count=5),
]


def read(serializer: Serializer, name: str, version: int, /, **data: Any) -> list[Any]:
    """Read it in both ways in which it comes, which must agree."""
    plain = copy.deepcopy(data)
    converted = serializer.convert_all("event", name, version, plain)
    assert plain == data, "the argument is Celery's"
    decoded = serializer.decode_all("event", name, version, json.dumps(data).encode())
    assert list(decoded) == list(converted)
    return list(decoded)


# ------------------------------------------------------------ reading


def test_a_chain_of_upcasters_leads_to_the_class_of_today(serializer):
    assert read(serializer, "depot.item_moved", 1, shelf="A1") == [ItemMoved(place="A1", count=1)]
    assert read(serializer, "depot.item_moved", 2, place="A1") == [ItemMoved(place="A1", count=1)]


def test_one_event_may_become_several_of_which_one_is_old_itself(serializer):
    assert read(serializer, "depot.item_changed", 1, name="bolt", place="B2") == [
        ItemRenamed(name="bolt"),
        ItemMoved(place="B2", count=1),
    ]


def test_an_event_may_be_dropped(serializer):
    assert read(serializer, "depot.item_counted", 1, count=5) == []


def test_an_alias_is_read_as_the_class_and_by_its_upcasters(serializer):
    assert read(serializer, "depot.item_shifted", 3, place="A", count=2) == [
        ItemMoved(place="A", count=2)
    ]
    assert read(serializer, "depot.item_shifted", 1, shelf="A") == [ItemMoved(place="A", count=1)]


def test_a_single_message_is_asked_for_where_an_upcaster_makes_several(serializer):
    with pytest.raises(
        UpcastFailed, match=r"has made 2 messages of the event 'depot.item_changed'"
    ):
        serializer.decode("event", "depot.item_changed", 1, b'{"name":"a","place":"b"}')


def test_an_old_version_without_an_upcaster_says_which_one_to_write(serializer):
    class Old(Event, name="depot.old", version=4):
        pass

    with pytest.raises(UnknownMessageType, match=r"Write one: @upcaster\('depot.old', 2\)"):
        read(serializer, "depot.old", 2)
    with pytest.raises(UnknownMessageType, match="Newer code wrote it"):
        read(serializer, "depot.old", 5)


def test_names_without_a_dot_are_the_applications_own():
    own = Registry()
    own.add("event", "made", 2, ItemKept, aliases=("built",))
    upcaster("made", 1, registry=own)(lambda data: {})
    serializer = Serializer(APPLICATION, own)
    for name in ("depot.made", "depot.built"):
        assert read(serializer, name, 1) == [ItemKept()]
    with pytest.raises(UnknownMessageType):
        read(serializer, "shop.made", 1)


def test_an_upcaster_comes_before_a_class_of_its_version():
    own = Registry()
    own.add("event", "depot.both", 1, ItemRenamed)
    own.add("event", "depot.both", 2, ItemKept)
    serializer = Serializer(APPLICATION, own)
    # given: read once without it
    assert read(serializer, "depot.both", 1, name="x") == [ItemRenamed(name="x")]
    upcaster("depot.both", 1, registry=own)(lambda data: {})
    assert read(serializer, "depot.both", 1, name="x") == [ItemKept()]


@pytest.mark.parametrize("way", ["decode_all", "convert_all"])
def test_what_is_registered_while_it_is_read_is_read_from_then_on(way):
    """A module that is reloaded, an upcaster that comes later."""
    own = Registry()
    serializer = Serializer(APPLICATION, own)
    data = b'{"trail":["a"]}' if way == "decode_all" else {"trail": ["a"]}

    def found() -> list[Any]:
        return list(getattr(serializer, way)("event", "depot.reloaded", 1, data))

    for cls in [type("Reloaded", (Final,), {"__module__": "x"}, frozen=True) for _ in range(2)]:
        own.add("event", "depot.reloaded", 1, cls)
        assert [type(one) for one in found()] == [cls]
    upcaster("depot.reloaded", 1, registry=own)(lambda data: [])
    assert found() == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda data: None, r"returned None; expected a dict, or a list of EventData"),
        (lambda data: [{}], r"expected a dict, or a list of EventData"),
        (lambda data: data["missing"], r"raised KeyError: 'missing'"),
        (lambda data: [EventData("depot.wrong", 1, {})], r"returned version 1; expected a later"),
        (lambda data: [EventData("depot.item_kept", 1, {})], r"into=\('depot.item_kept',\)"),
    ],
)
def test_an_upcaster_that_fails_is_named_with_its_place(function, expected):
    own = Registry()
    upcaster("depot.wrong", 1, registry=own)(function)
    with pytest.raises(UpcastFailed, match=expected) as failed:
        read(Serializer(APPLICATION, own), "depot.wrong", 1)
    assert "test_upcasting.py:" in str(failed.value)
    assert (failed.value.name, failed.value.version) == ("depot.wrong", 1)


def test_upcasters_that_lead_in_a_circle_are_an_error():
    own = Registry()
    upcaster("a", 1, into=("b",), registry=own)(lambda data: [EventData("b", 1, {})])
    upcaster("b", 1, into=("a",), registry=own)(lambda data: [EventData("a", 1, {})])
    with pytest.raises(UpcastFailed, match="leads back to itself"):
        read(Serializer(APPLICATION, own), "depot.a", 1)


def test_what_an_upcaster_made_that_does_not_fit_says_what_it_was_made_of(serializer):
    with pytest.raises(MalformedMessage, match=r"\$\.place") as refused:
        read(serializer, "depot.item_moved", 2, place=5)
    assert refused.value.__notes__ == ["an upcaster made it of 'depot.item_moved', version 2"]


def test_data_that_is_no_object_is_an_error(serializer):
    with pytest.raises(UpcastFailed, match="was given list; expected an object"):
        serializer.decode_all("event", "depot.item_moved", 1, b"[]")
    with pytest.raises(MalformedMessage):
        serializer.decode_all("event", "depot.item_moved", 1, b"{")


@pytest.mark.parametrize("options", [{"version": 2}, {"unknown_fields": "keep"}])
def test_a_query_has_no_version_and_no_unknown_fields(options):
    with pytest.raises(RegistrationError, match="a query never leaves its process"):
        MessageMeta("Odd", (Query,), {}, name="depot.odd_query", **options)


def test_commands_and_messages_have_upcasters_too(serializer):
    class Move(Command, name="depot.move", version=2):
        place: str

    @upcaster("depot.move", 1, kind="command")
    def move_v1(data: dict[str, Any]) -> dict[str, Any]:
        return {"place": data["shelf"]}

    plain = {"type": "depot.move", "version": 1, "data": {"shelf": "A"}}
    assert serializer.from_plain("command", plain) == Move(place="A")


# ------------------------------------------------------------ registration


def test_a_second_upcaster_of_a_version_is_refused_and_both_are_named():
    with pytest.raises(DuplicateRegistration, match=r"(?s)moved_v1.*another"):

        @upcaster("depot.item_moved", 1)
        def another(data: dict[str, Any]) -> dict[str, Any]:
            return data


def test_an_upcaster_that_is_declared_again_replaces_the_first():
    own = Registry()
    for place in ("A", "B"):

        def same(data: dict[str, Any], place: str = place) -> dict[str, Any]:
            return {"place": place, "count": 1}

        upcaster("moved", 1, registry=own)(same)
    own.add("event", "moved", 2, ItemMoved)
    assert read(Serializer(APPLICATION, own), "depot.moved", 1)[0].place == "B"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"name": "with space", "version": 1}, "expected letters"),
        ({"name": "x", "version": 0}, "whole number from 1"),
        ({"name": "x", "version": 1, "kind": "thing"}, "accepted: event, command, message"),
        ({"name": "x", "version": 1, "kind": "query"}, "accepted: event, command, message"),
        (
            {"name": "x", "version": 1, "kind": "command", "into": ("y",)},
            "which is only for events",
        ),
        ({"name": "x", "version": 1, "into": (5,)}, "has the name 5"),
    ],
)
def test_an_upcaster_of_what_is_none_is_refused(options, expected):
    with pytest.raises(RegistrationError, match=expected):
        upcaster(**options)(lambda data: data)


@pytest.mark.parametrize("is_alias_first", [True, False])
def test_an_alias_that_is_another_classes_name_is_refused_in_whatever_order(is_alias_first):
    own = Registry()
    claims = [("new", ("old",), ItemMoved), ("old", (), ItemKept)]
    first, second = claims if is_alias_first else claims[::-1]
    own.add("event", first[0], 1, first[2], first[1])
    with pytest.raises(DuplicateRegistration, match="'old' is claimed by"):
        own.add("event", second[0], 1, second[2], second[1])


def test_an_alias_of_two_classes_is_refused_and_of_two_versions_of_one_name_is_not():
    own = Registry()
    own.add("event", "new", 1, ItemMoved, ("old",))
    own.add("event", "new", 2, ItemKept, ("old",))
    with pytest.raises(DuplicateRegistration, match="'old' is claimed by"):
        own.add("event", "other", 1, ItemRenamed, ("old",))


def test_a_class_that_is_defined_again_without_its_alias_has_it_no_longer():
    own = Registry()
    own.add("event", "new", 1, ItemMoved, ("old",))
    own.add("event", "new", 1, ItemMoved)
    with pytest.raises(UnknownMessageType):
        own.find("event", "depot.old", 1, APPLICATION)


def test_aliases_are_for_events_and_messages():
    with pytest.raises(RegistrationError, match="aliases, which are for events and messages"):
        MessageMeta("Odd", (Command,), {}, aliases=("x",))
    with pytest.raises(RegistrationError, match=r"expected a tuple of names: \('x',\)"):
        MessageMeta("Odd", (Event,), {}, aliases="x")
    with pytest.raises(RegistrationError, match="its own name"):
        MessageMeta("Odd", (Event,), {}, name="depot.odd", aliases=("depot.odd",))


# ------------------------------------------------------------ aggregates


def cqrs_with(*events: NewEvent, deliver: bool = False) -> CQRS:
    store = None if deliver else MemoryEventStore()
    cqrs = CQRS(Celery(APPLICATION, changes={"cqrs_event_store": "memory://"}), store=store)
    for event in events:
        cqrs.store.append([StreamAppend(STREAM, ANY_VERSION, [event])])
    return cqrs


def test_an_aggregate_is_rebuilt_from_old_events_and_keeps_its_version():
    cqrs = cqrs_with(*HISTORY)
    with cqrs.session() as session:
        shelf = session.get(Shelf, "7")
        assert shelf.version == 6
        assert [name for name, _ in shelf.log] == [
            "ItemMoved", "ItemRenamed", "ItemMoved", "ItemMoved", "ItemMoved"
        ]  # fmt: skip
        shelf.record(ItemKept())
    # then: it went on behind the dropped one
    assert [stored.version for stored in cqrs.store.read_stream(STREAM)] == [1, 2, 3, 4, 5, 6, 7]


def test_an_aggregate_whose_events_are_all_dropped_exists():
    with cqrs_with(HISTORY[2]).session() as session:
        assert session.get(Shelf, "7").version == 1


def test_a_gap_in_history_is_still_found():
    from cqrs_celery.domain.lifecycle import build, replay

    cqrs = cqrs_with(*HISTORY)
    stored = cqrs.store.read_stream(STREAM)
    for wrong in (stored[1:], [stored[0], *stored], [*stored[:2], *stored[1:]]):
        with pytest.raises((EventOutOfOrder, UnhandledEvent)):
            replay(build(Shelf, "7"), recorded_events(wrong, cqrs.runtime.serializer))


def test_a_history_alone_replays_as_the_whole_events_do():
    # given an aggregate's events, of which some were split and one is dropped
    cqrs = cqrs_with(*HISTORY)
    serializer, stored = cqrs.runtime.serializer, cqrs.store.read_stream(STREAM)
    history = [
        (one.version, one.event.type, one.event.type_version, one.event.data) for one in stored
    ]
    # then what only changes the aggregate is the same
    alone, whole = build(Shelf, "7"), build(Shelf, "7")
    replay(alone, replayed_events(history, STREAM, serializer))
    replay(whole, recorded_events(stored, serializer))
    assert (alone.version, alone.log) == (whole.version, whole.log)
    # and so is what is found wrong
    for wrong in (history[1:], [history[0], *history], [*history[:2], *history[1:]]):
        with pytest.raises((EventOutOfOrder, UnhandledEvent)):
            replay(build(Shelf, "7"), replayed_events(wrong, STREAM, serializer))


def test_an_event_of_a_history_that_can_not_be_read_says_where_it_is_stored(serializer):
    history = [(3, "depot.item_moved", 3, b'{"place":1}')]
    with pytest.raises(MalformedMessage) as failed:
        list(replayed_events(history, STREAM, serializer))
    assert failed.value.__notes__ == ["stored in Shelf-7 at version 3"]


# ------------------------------------------------------------ subscriptions


def test_subscriptions_get_what_old_events_have_become():
    cqrs_with(*HISTORY, deliver=True)
    assert log.renamed == [("bolt", 2, 1, 2)]
    assert log.moved == [("A1", 1, 1, 1), ("B2", 1, 2, 2), ("C3", 1, 4, 1), ("D4", 4, 5, 1)]


def test_a_subscription_is_registered_for_the_old_names_too(serializer):
    assert topics_of([ItemMoved], serializer) == (
        "depot.item_moved", "depot.item_shifted", "depot.item_changed"
    )  # fmt: skip
    assert topics_of([ItemRenamed], serializer) == ("depot.item_renamed", "depot.item_changed")


def test_a_message_may_have_an_alias_and_its_topic_too(serializer):
    class Printed(Message, name="depot.printed", aliases=("depot.listed",)):
        pass

    assert topics_of([Printed], serializer) == ("message:depot.printed", "message:depot.listed")


def task_run(cqrs: CQRS, name: str, event: NewEvent) -> Any:
    stored = cqrs_with(event).store.read_all()[0]
    (definition,) = [d for d in definitions.all() if d.function.__name__ == name]
    return task_of(cqrs.app, definition).apply((pack_event(stored),), retries=3, throw=True)


def test_a_function_passes_over_the_parts_that_it_does_not_take():
    cqrs = cqrs_with()
    task_run(cqrs, "on_renamed", HISTORY[0])
    task_run(cqrs, "on_renamed", HISTORY[2])
    assert log.renamed == []


def test_a_part_that_was_committed_is_not_committed_again_when_another_one_fails():
    @upcaster("depot.moved_twice", 1, into=(ItemMoved,))
    def twice(data: dict[str, Any]) -> list[EventData]:
        return [EventData("depot.item_moved", 2, {"place": place}) for place in ("A", "B")]

    @subscribes(ItemMoved)
    def upcasting_counts(event: ItemMoved, session: Session) -> None:
        shelf = session.find(Shelf, "counts")
        if shelf is None:
            shelf = Shelf("counts")
            session.add(shelf)
        shelf.record(ItemKept())
        if event.place == log.fail_at_place:
            raise ValueError("no such place")

    counts = StreamName(APPLICATION, "Shelf", "counts")
    cqrs = cqrs_with()
    log.fail_at_place = "B"
    with pytest.raises(ValueError, match="no such place"):
        task_run(cqrs, "upcasting_counts", old("depot.moved_twice", 1))
    assert len(cqrs.store.read_stream(counts)) == 1
    # when: it comes again
    log.fail_at_place = None
    for _ in range(2):
        task_run(cqrs, "upcasting_counts", old("depot.moved_twice", 1))
    assert len(cqrs.store.read_stream(counts)) == 2


def test_what_was_handled_as_a_whole_is_not_handled_again_in_parts():
    from cqrs_celery.store.events import CommandRecord

    cqrs = cqrs_with()
    record = CommandRecord("event-2:depot.list.on_renamed", "null", 60)
    cqrs.store.append(
        [StreamAppend(StreamName(APPLICATION, "Shelf", "x"), 0, [old("depot.item_kept", 1, 9)])],
        command=record,
    )
    task_run(cqrs, "on_renamed", HISTORY[1])
    assert log.renamed == []


def test_a_batch_gets_the_parts_in_their_order():
    got: list[Any] = []

    @subscribes(ItemRenamed, ItemMoved, batch=10)
    def upcasting_batch(events: list[RecordedEvent[Any]]) -> None:
        got.append([(type(e.event).__name__, e.version, e.part) for e in events])

    cqrs = cqrs_with()
    stored = [pack_event(one) for one in cqrs_with(*HISTORY[:3]).store.read_all()]
    upcasting_batch.task.apply((stored,), throw=True)
    upcasting_batch.task.apply((stored[2:],), throw=True)
    assert got == [[("ItemMoved", 1, 1), ("ItemRenamed", 2, 1), ("ItemMoved", 2, 2)]]
    assert cqrs.app is not None


def test_parts_keep_the_facts_of_their_recording(serializer):
    (stored,) = cqrs_with(HISTORY[1]).store.read_all()
    one, two = unpack_events(pack_event(stored), serializer)
    assert (one.part, two.part, one.parts, two.parts) == (1, 2, 2, 2)
    for part in (one, two):
        assert (part.event_id, part.version, part.global_position) == ("event-2", 1, 1)
        assert part.stream == STREAM


# ------------------------------------------------------------ unknown fields


def test_unknown_fields_are_passed_over_refused_or_kept(serializer):
    class Lenient(Event, name="depot.lenient"):
        name: str

    class Strict(Event, name="depot.strict", unknown_fields="refuse"):
        name: str

    class Keeping(Event, name="depot.keeping", unknown_fields="keep", rename="camel"):
        item_name: str

    class AlsoKeeping(Keeping, name="depot.also_keeping"):
        pass

    assert read(serializer, "depot.lenient", 1, name="x", new=1) == [Lenient(name="x")]
    with pytest.raises(MalformedMessage, match="unknown field `new`"):
        read(serializer, "depot.strict", 1, name="x", new=1)
    for cls in (Keeping, AlsoKeeping):
        (kept,) = read(serializer, cls.__registered__.name, 1, itemName="x", new=[1], other=None)
        assert kept == cls(item_name="x")
        assert unknown_fields_of(kept) == {"new": [1], "other": None}
        expected = {"itemName": "x", "new": [1], "other": None}
        assert json.loads(serializer.encode(kept).data) == expected
        assert serializer.to_plain(kept)["data"] == expected
        assert kept.__json__()["data"] == expected
    assert unknown_fields_of(Lenient(name="x")) == {}
    assert unknown_fields_of(Keeping(item_name="x")) == {}


def test_another_choice_about_unknown_fields_is_refused():
    with pytest.raises(RegistrationError, match="accepted: 'ignore', 'refuse' or 'keep'"):
        MessageMeta("Odd", (Event,), {}, unknown_fields="forget")


def test_a_class_that_keeps_unknown_fields_refuses_what_is_no_object(serializer):
    class Keeping(Event, name="depot.keeping_objects", unknown_fields="keep"):
        pass

    for data in (b"[]", b"5", b"{", b"null"):
        with pytest.raises(MalformedMessage):
            serializer.decode("event", "depot.keeping_objects", 1, data)


# ------------------------------------------------------------ any chain, any order


class Final(msgspec.Struct, frozen=True):
    """Stands for the class of today: what it was made of, step by step."""

    trail: list[str]

    __keeps_unknown__ = False


steps = st.lists(
    st.sampled_from(["change", "rename", "split", "drop half", "alias"]), min_size=1, max_size=6
)


@settings(deadline=None)
@given(steps, st.data())
def test_any_chain_of_upcasters_registered_in_any_order_reads_every_version(kinds, data):
    """Deployments that come in any order differ only in what is registered when."""
    own = Registry()
    registrations: list[Any] = []
    places = [("depot.e0", 1)]

    def add(name: str, version: int, function: Any, into: tuple[str, ...] = ()) -> None:
        registrations.append(lambda: upcaster(name, version, into=into, registry=own)(function))

    aliases: dict[str, list[str]] = {}
    target: tuple[str, int]
    into: tuple[str, ...]
    for number, kind in enumerate(kinds):
        name, version = places[-1]
        mark = f"{kind} {number}"
        if kind == "change":
            target, into = (name, version + 1), ()
        elif kind == "alias":
            target, into = (f"depot.e{number + 1}", version), ()
        else:
            target, into = (f"depot.e{number + 1}", 1), (f"depot.e{number + 1}",)
        copies = 2 if kind == "split" else 1

        def step(data, target=target, mark=mark, copies=copies, kind=kind):
            if kind == "drop half" and len(data["trail"]) % 2:
                return []
            trail = [*data["trail"], mark]
            data["trail"].append("the input is the function's own")
            if kind == "change":
                return {"trail": trail}
            return [EventData(target[0], target[1], {"trail": trail}) for _ in range(copies)]

        if kind == "alias":
            aliases.setdefault(target[0], []).append(name)
        else:
            add(name, version, step, into)
        places.append(target)
    # An alias needs a class that has it: one at each name to which one leads.
    for number, (name, names) in enumerate(aliases.items()):
        last = places[-1][0] == name
        version = places[-1][1] if last else 99 + number
        cls = type(f"Final{number}", (Final,), {}, frozen=True)
        registrations.append(
            lambda n=name, v=version, c=cls, a=tuple(names): own.add("event", n, v, c, a)
        )
    name, version = places[-1]
    if name not in aliases:
        registrations.append(lambda: own.add("event", name, version, Final))

    def expected(start: int) -> list[list[str]]:
        trails: list[list[str]] = [[]]
        for number in range(start, len(kinds)):
            kind, mark = kinds[number], f"{kinds[number]} {number}"
            if kind == "alias":
                continue
            if kind == "drop half":
                trails = [trail for trail in trails if not len(trail) % 2]
            trails = [[*trail, mark] for trail in trails for _ in range(1 + (kind == "split"))]
        return trails

    order = data.draw(st.permutations(registrations))
    serializer = Serializer(APPLICATION, own)
    for done, register in enumerate([*order, None]):
        for start, (old_name, old_version) in enumerate(places):
            try:
                found = read(serializer, old_name, old_version, trail=[])
            except UnknownMessageType:
                assert done < len(order), "all is registered"
                continue
            assert [one.trail for one in found] == expected(start)
        if register:
            register()


def test_registered_in_every_order_a_deployment_reads_the_same():
    """Every permutation of one chain with a split, an alias and a drop."""

    def registrations(own: Registry) -> list[Any]:
        return [
            lambda: own.add("event", "depot.z", 2, ItemKept, ("depot.y",)),
            lambda: upcaster("depot.y", 1, registry=own)(lambda data: {}),
            lambda: upcaster("depot.x", 1, into=("depot.y",), registry=own)(
                lambda data: [EventData("depot.y", n, {}) for n in (1, 2)]
            ),
        ]  # fmt: skip

    for order in itertools.permutations(range(3)):
        own = Registry()
        all_of_them = registrations(own)
        for number in order:
            all_of_them[number]()
        assert read(Serializer(APPLICATION, own), "depot.x", 1) == [ItemKept(), ItemKept()]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["rename", "split", "drop odd"]), min_size=1, max_size=4), st.data()
)
def test_releases_that_are_deployed_in_any_order_read_what_each_other_wrote(kinds, data):
    """Forth and back: each writes its version; whoever can read it reads the same."""
    releases = [release(kinds[:number]) for number in range(len(kinds) + 1)]
    store = MemoryEventStore()
    written: list[tuple[int, list[int]]] = []
    order = data.draw(st.lists(st.sampled_from(range(len(releases))), min_size=1, max_size=8))
    for running in order:
        # when a release writes an event of its version
        version, values = running + 1, data.draw(st.lists(st.integers(0, 9), max_size=2))
        event = old("depot.level", version, len(written), **{f"values_{version}": values})
        store.append([StreamAppend(STREAM, ANY_VERSION, [event])])
        written.append((version, values))
        # then each release reads all as its own version, or says that newer code wrote it
        for number, serializer in enumerate(releases):
            expected = [
                made
                for version, values in written
                for made in led(kinds[version - 1 : number], version, values)
            ]
            history = recorded_events(store.read_stream(STREAM), serializer)
            if any(version > number + 1 for version, _ in written):
                with pytest.raises(UnknownMessageType, match="Newer code wrote it"):
                    list(history)
                continue
            found = [recorded.event for recorded in history if recorded.event is not None]
            assert [getattr(one, f"values_{number + 1}") for one in found] == expected


def release(kinds: list[str]) -> Serializer:
    """Return what a release reads with: a class of its version, and upcasters of all before it."""
    own = Registry()
    for number, kind in enumerate(kinds, 1):

        def step(data: dict[str, Any], number: int = number, kind: str = kind) -> Any:
            values = data[f"values_{number}"]
            return [
                EventData("depot.level", number + 1, {f"values_{number + 1}": one})
                for one in led([kind], number, values)
            ]

        upcaster("depot.level", number, registry=own)(step)
    version = len(kinds) + 1
    cls: Any = msgspec.defstruct("Level", [(f"values_{version}", list[int])], frozen=True)
    cls = type("Level", (cls,), {"__keeps_unknown__": False}, frozen=True)
    own.add("event", "depot.level", version, cls)
    return Serializer(APPLICATION, own)


def led(kinds: list[str], version: int, values: list[int]) -> list[list[int]]:
    """Return what a chain makes of an event's values, from a version on."""
    found = [values]
    for number, kind in enumerate(kinds, version):
        if kind == "drop odd":
            found = [one for one in found if sum(one) % 2 == 0]
        copies = 2 if kind == "split" else 1
        found = [[*one, number, *([part] if copies > 1 else [])]
                 for one in found for part in range(copies)]  # fmt: skip
    return found
