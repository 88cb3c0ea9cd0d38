"""Aggregates record events, apply them, and are rebuilt from them."""

import copy
import pickle
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.domain.lifecycle import build, mark_saved, replay
from cqrs_celery.errors import (
    AggregateError,
    AggregateNotConstructible,
    DuplicateRegistration,
    EventOutOfOrder,
    ForeignEvent,
    HandlerSignatureError,
    MissingAggregateId,
    RegistrationError,
    ReservedFieldName,
    UnhandledEvent,
)
from cqrs_celery.messages.message import Event


class AggregateStockChanged(Event):
    count: int = 1


class AggregateItemsCheckedIn(AggregateStockChanged):
    pass


class AggregateItemsCheckedOut(AggregateStockChanged):
    pass


class AggregateItemRenamed(Event):
    name: str


class AggregateItemMoved(Event):
    to: str


class Item(Aggregate, name="AggregateItem"):
    name: str = ""
    count: int = 0

    @applies(AggregateItemsCheckedIn)
    def _checked_in(self, event: AggregateItemsCheckedIn) -> None:
        self.count += event.count

    @applies(AggregateItemRenamed)
    def _renamed(self, event: AggregateItemRenamed) -> None:
        if not event.name:
            raise ValueError("no name")
        self.name = event.name


@dataclass(frozen=True)
class Past:
    event: Event
    version: int
    aggregate_id: str = "42"


# Recording


def test_recording_calls_the_method_that_applies_the_event():
    """27: the matching `applies` method is called, at once."""
    # given
    item = Item("42")
    # when
    item.record(AggregateItemsCheckedIn(count=5))
    # then
    assert item.count == 5


def test_a_recorded_event_is_pending_and_leaves_the_version():
    # given
    item = Item("42")
    # when
    item.record(AggregateItemsCheckedIn(count=5))
    item.record(AggregateItemRenamed(name="bolt"))
    # then
    assert [pending.event for pending in item.pending_events] == [
        AggregateItemsCheckedIn(count=5),
        AggregateItemRenamed(name="bolt"),
    ]
    assert item.version == 0


def test_pending_events_have_ids_of_their_own_that_stay():
    # given
    item = Item("42")
    # when
    item.record(AggregateItemsCheckedIn())
    item.record(AggregateItemsCheckedIn())
    # then
    first, second = item.pending_events
    assert first.event_id != second.event_id
    assert item.pending_events == (first, second)


def test_timestamps_are_utc_and_set_when_recorded():
    """30: UTC timestamps, set when recorded."""
    # given
    item = Item("42")
    before = datetime.now(UTC)
    # when
    item.record(AggregateItemsCheckedIn())
    # then
    timestamp = item.pending_events[0].timestamp
    assert before <= timestamp <= datetime.now(UTC)
    assert timestamp.utcoffset() == timedelta(0)
    assert item.pending_events[0].timestamp == timestamp


def test_an_event_without_a_method_is_tolerated():
    """28: tolerated by default."""
    # given
    item = Item("42")
    # when
    item.record(AggregateItemMoved(to="shelf"))
    # then
    assert len(item.pending_events) == 1


def test_a_strict_class_refuses_an_event_without_a_method_and_does_not_keep_it():
    """28: refused where the class says strict."""

    # given
    class StrictItem(Aggregate, strict=True):
        pass

    item = StrictItem("42")
    # when
    with pytest.raises(UnhandledEvent, match=r"StrictItem .*AggregateItemMoved"):
        item.record(AggregateItemMoved(to="shelf"))
    # then
    assert item.pending_events == ()


def test_strictness_is_inherited_and_can_be_taken_back():
    class StrictItem(Aggregate, strict=True):
        pass

    class StrictChild(StrictItem):
        pass

    class LooseChild(StrictItem, strict=False):
        pass

    with pytest.raises(UnhandledEvent):
        StrictChild("42").record(AggregateItemMoved(to="shelf"))
    LooseChild("42").record(AggregateItemMoved(to="shelf"))


def test_without_an_id_nothing_is_recorded_and_both_types_are_named():
    """24: no id on aggregate and event: an error that names both types."""
    # given
    item = Item("")
    # when
    with pytest.raises(MissingAggregateId, match="Item recorded AggregateItemsCheckedIn") as error:
        item.record(AggregateItemsCheckedIn())
    # then
    assert (error.value.aggregate_type, error.value.event_type) == (
        "AggregateItem",
        "AggregateItemsCheckedIn",
    )
    assert item.pending_events == ()
    assert item.count == 0


@pytest.mark.parametrize("id", [None, 42, UUID(int=42)])
def test_an_id_that_is_not_text_is_refused(id):
    with pytest.raises(TypeError, match=r"expected text, as str\(id\)"):
        build(Item, id)


def test_an_event_that_can_not_be_applied_is_not_pending():
    # given
    item = Item("42")
    # when
    with pytest.raises(ValueError, match="no name"):
        item.record(AggregateItemRenamed(name=""))
    # then
    assert item.pending_events == ()


def test_an_applies_method_may_not_record():
    # given
    class Echo(Aggregate):
        @applies(AggregateItemRenamed)
        def _renamed(self, event: AggregateItemRenamed) -> None:
            self.record(AggregateItemMoved(to=event.name))

    item = Echo("42")
    # when
    with pytest.raises(AggregateError, match="while it applied AggregateItemRenamed"):
        item.record(AggregateItemRenamed(name="bolt"))
    # then
    assert item.pending_events == ()


# Which method


def test_private_methods_apply_events():
    """32: private methods work."""

    class Private(Aggregate):
        count = 0

        @applies(AggregateItemsCheckedIn)
        def __checked_in(self, event: AggregateItemsCheckedIn) -> None:
            self.count += event.count

    item = Private("42")
    item.record(AggregateItemsCheckedIn(count=5))
    assert item.count == 5


def test_one_method_may_apply_several_types():
    class Sum(Aggregate):
        count = 0

        @applies(AggregateItemsCheckedIn, AggregateItemsCheckedOut)
        def _changed(self, event: AggregateItemsCheckedIn | AggregateItemsCheckedOut) -> None:
            self.count += event.count

    item = Sum("42")
    item.record(AggregateItemsCheckedIn(count=5))
    item.record(AggregateItemsCheckedOut(count=2))
    assert item.count == 7


def test_the_method_for_the_most_specific_class_of_the_event_is_called():
    class Specific(Aggregate):
        def __init__(self, id: str) -> None:
            super().__init__(id)
            self.seen: list[str] = []

        @applies(AggregateStockChanged)
        def _changed(self, event: AggregateStockChanged) -> None:
            self.seen.append("changed")

        @applies(AggregateItemsCheckedIn)
        def _checked_in(self, event: AggregateItemsCheckedIn) -> None:
            self.seen.append("checked in")

        @applies(Event)
        def _anything(self, event: Event) -> None:
            self.seen.append("anything")

    item = Specific("42")
    for event in (
        AggregateItemsCheckedIn(),
        AggregateItemsCheckedOut(),
        AggregateItemMoved(to="shelf"),
    ):
        item.record(event)
    assert item.seen == ["checked in", "changed", "anything"]


def test_methods_are_inherited():
    class Child(Item):
        pass

    item = Child("42")
    item.record(AggregateItemsCheckedIn(count=5))
    assert item.count == 5


def test_a_subclass_may_apply_an_event_in_its_own_way():
    class OtherMethod(Item):
        @applies(AggregateItemsCheckedIn)
        def _twice(self, event: AggregateItemsCheckedIn) -> None:
            self.count += 2 * event.count

    class SameMethod(Item):
        def _checked_in(self, event: AggregateItemsCheckedIn) -> None:
            self.count += 3 * event.count

    for cls, expected in ((OtherMethod, 10), (SameMethod, 15), (Item, 5)):
        item = cls("42")
        item.record(AggregateItemsCheckedIn(count=5))
        assert item.count == expected


def test_two_methods_for_one_event_in_one_class_are_refused_and_both_are_named():
    with pytest.raises(RegistrationError, match=r"AggregateItemMoved .*_one .*_other"):

        class Twice(Aggregate):
            @applies(AggregateItemMoved)
            def _one(self, event: AggregateItemMoved) -> None: ...

            @applies(AggregateItemMoved)
            def _other(self, event: AggregateItemMoved) -> None: ...


def test_applies_wants_event_types():
    with pytest.raises(RegistrationError, match="was given no event"):
        applies()
    with pytest.raises(RegistrationError, match="expected event classes"):
        applies(int)  # type: ignore[type-var]
    with pytest.raises(RegistrationError, match="expected event classes"):

        @applies  # type: ignore[call-overload]
        def without_parentheses(self, event): ...


def test_a_method_that_does_not_take_the_event_alone_is_refused():
    with pytest.raises(HandlerSignatureError, match=r"expected \(self, event\)"):

        @applies(AggregateItemMoved)  # type: ignore[arg-type]
        def too_few(self): ...

    with pytest.raises(HandlerSignatureError, match=r"expected \(self, event\)"):

        @applies(AggregateItemMoved)  # type: ignore[arg-type]
        def too_many(self, event, recorded): ...


def test_an_async_method_is_refused():
    with pytest.raises(HandlerSignatureError, match="is async"):

        @applies(AggregateItemMoved)  # type: ignore[arg-type]
        async def later(self, event): ...


# The class


def test_the_type_is_the_class_s_name_or_the_given_one():
    class Named(Aggregate, name="inventory.item-2"):
        pass

    class Child(Named):
        pass

    assert Item.__aggregate_type__ == "AggregateItem"
    assert Named.__aggregate_type__ == "inventory.item-2"
    assert Child.__aggregate_type__ == "Child"


def test_two_classes_of_one_type_are_refused_and_both_are_named():
    class Ledger(Aggregate):
        pass

    with pytest.raises(DuplicateRegistration) as refused:

        class Book(Aggregate, name="Ledger"):
            pass

    # then the text names both with file and line, and what to write
    here = r"tests\.unit\.test_aggregate\.test_two\w+\.<locals>\.{} \(.*test_aggregate\.py:\d+\)"
    assert re.fullmatch(
        r"the aggregate type 'Ledger' is claimed by " + here.format("Ledger")
        + " and by " + here.format("Book") + ": their aggregates would share streams\\. Give one of"
        r" them another name: class Book\(…, name='…'\)\. If both are meant to read the same"
        r" streams, declare it: class Book\(…, alias_of=Ledger\)",
        str(refused.value),
    )  # fmt: skip


def test_a_class_may_be_made_again_as_a_reloaded_module_does():
    def define() -> type[Aggregate]:
        class Reloaded(Aggregate):
            pass

        return Reloaded

    assert define().__aggregate_type__ == define().__aggregate_type__


def test_a_class_may_share_anothers_streams_if_it_says_so():
    class Full(Aggregate):
        pass

    class Slim(Aggregate, alias_of=Full):
        pass

    assert Slim.__aggregate_type__ == "Full"
    # and the type is still the first one's alone
    with pytest.raises(DuplicateRegistration, match="Full"):
        type("Third", (Aggregate,), {}, name="Full")


@pytest.mark.parametrize(("options", "found"), [
    ({"alias_of": int}, "alias_of = <class 'int'>"),
    ({"alias_of": Item, "name": "Another"}, "the type 'Another'"),
])  # fmt: skip
def test_an_alias_of_no_aggregate_or_under_another_name_is_refused(options, found):
    with pytest.raises(RegistrationError, match=f"{found}.*expected an aggregate class"):
        type("Alias", (Aggregate,), {}, **options)


@pytest.mark.parametrize("name", ["", "with space", "a:b", "ü", "a/b"])
def test_a_type_that_is_no_name_is_refused(name):
    with pytest.raises(RegistrationError, match="expected letters, digits"):

        class Odd(Aggregate, name=name):
            pass


@pytest.mark.parametrize("name", ["id", "version", "pending_events", "record"])
def test_names_of_the_base_class_are_refused(name):
    with pytest.raises(ReservedFieldName, match=name) as refused:
        type("Hiding", (Aggregate,), {name: 5})
    assert refused.value.field == name


def test_names_of_the_base_class_are_refused_in_a_mixin_too():
    class Versioned:
        version = 5

    with pytest.raises(ReservedFieldName, match="'version'"):

        class Hiding(Versioned, Aggregate):
            pass


def test_instances_never_share_mutable_defaults():
    # given
    class Lists(Aggregate):
        lines: list[list[str]] = [["first"]]  # noqa: RUF012  what this test is about
        counts: dict[str, int] = defaultdict(int)  # noqa: RUF012
        tags: set[str] = set()  # noqa: RUF012
        _private: list[str] = []  # noqa: RUF012

    class Child(Lists):
        tags: set[str] = {"child"}  # noqa: RUF012

    one, other, child = Lists("1"), Lists("2"), Child("3")
    # when
    one.lines[0].append("second")
    one.counts["x"] += 1
    one.tags.add("x")
    one._private.append("x")
    child.lines.append([])
    child.tags.add("y")
    # then
    assert (other.lines, other.counts, other.tags, other._private) == ([["first"]], {}, set(), [])
    assert child.tags == {"child", "y"}
    assert Lists("4").lines == [["first"]]
    assert Child("5").tags == {"child"}


def test_a_subclass_may_replace_a_mutable_default_by_one_that_is_not():
    class Lists(Aggregate):
        lines: list[str] | None = []  # noqa: RUF012

    class Child(Lists):
        lines = None

    assert Child("1").lines is None


def test_upper_case_names_are_constants_and_stay_shared():
    class Sized(Aggregate):
        SIZES = ["S", "M"]  # noqa: RUF012

    assert Sized("1").SIZES is Sized.SIZES
    assert "SIZES" not in vars(Sized("1"))


def test_its_text_says_which_aggregate_it_is_and_where_it_stands():
    item = Item("42")
    item.record(AggregateItemsCheckedIn())
    assert repr(item) == "<AggregateItem-42 at version 0, 1 pending>"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_a_copy_shares_nothing(clone):
    # given
    item = Item("42")
    item.record(AggregateItemsCheckedIn(count=5))
    # when
    copied = clone(item)
    copied.record(AggregateItemsCheckedIn(count=1))
    # then
    assert (copied.id, copied.count, len(copied.pending_events)) == ("42", 6, 2)
    assert (item.count, len(item.pending_events)) == (5, 1)


# Building


def test_an_aggregate_is_built_from_its_id():
    item = build(Item, "42")
    assert (item.id, item.version, item.pending_events) == ("42", 0, ())


def test_an_init_of_its_own_may_have_more_parameters_with_defaults():
    class Own(Aggregate):
        def __init__(self, id: str, name: str = "bolt") -> None:
            super().__init__(id)
            self.name = name

    assert build(Own, "42").name == "bolt"


def test_a_class_that_needs_more_than_an_id_is_refused_and_named():
    """25: an aggregate class that cannot be built without arguments: error."""

    class Demanding(Aggregate):
        def __init__(self, id: str, name: str) -> None:
            super().__init__(id)

    with pytest.raises(AggregateNotConstructible, match=r"Demanding .*from just an id.*'name'"):
        build(Demanding, "42")


def test_a_class_that_does_not_pass_its_id_on_is_refused():
    class Forgetful(Aggregate):
        def __init__(self, id: str) -> None:
            self.name = "bolt"

    class Wilful(Aggregate):
        def __init__(self, id: str) -> None:
            super().__init__("other")

    for cls in (Forgetful, Wilful):
        with pytest.raises(AggregateNotConstructible, match=r"call super\(\).__init__\(id\)"):
            build(cls, "42")


def test_a_type_error_inside_init_is_the_author_s_to_see():
    class Broken(Aggregate):
        def __init__(self, id: str) -> None:
            super().__init__(id + 5)  # type: ignore[operator]

    with pytest.raises(TypeError, match="concatenate"):
        build(Broken, "42")


# Replaying and saving


def test_replaying_applies_events_and_moves_the_version():
    """29: versions 1, 2, …"""
    # given
    item = Item("42")
    # when
    replay(
        item,
        [Past(AggregateItemsCheckedIn(count=5), 1), Past(AggregateItemRenamed(name="bolt"), 2)],
    )
    # then
    assert (item.count, item.name, item.version, item.pending_events) == (5, "bolt", 2, ())


def test_history_may_be_replayed_in_parts():
    item = Item("42")
    replay(item, [Past(AggregateItemsCheckedIn(), 1)])
    replay(item, [Past(AggregateItemsCheckedIn(), 2)])
    assert (item.count, item.version) == (2, 2)


@pytest.mark.parametrize(
    ("versions", "expected", "found"), [([2], 1, 2), ([1, 3], 2, 3), ([1, 1], 2, 1), ([0], 1, 0)]
)
def test_history_out_of_order_is_an_error(versions, expected, found):
    """26: history out of order: error."""
    with pytest.raises(
        EventOutOfOrder, match=f"AggregateItem-42 .*{found}, expected {expected}"
    ) as error:
        replay(Item("42"), [Past(AggregateItemsCheckedIn(), version) for version in versions])
    assert (error.value.stream, error.value.expected, error.value.found) == (
        "AggregateItem-42",
        expected,
        found,
    )


def test_an_event_of_another_aggregate_is_an_error():
    """26: an event whose aggregate id differs from the aggregate's: error."""
    with pytest.raises(ForeignEvent, match="'43'") as error:
        replay(Item("42"), [Past(AggregateItemsCheckedIn(), 1, aggregate_id="43")])
    assert (error.value.expected, error.value.found) == ("42", "43")


def test_once_saved_nothing_is_pending_and_the_version_has_moved():
    # given
    item = Item("42")
    item.record(AggregateItemsCheckedIn())
    # when
    mark_saved(item, 1)
    # then
    assert (item.version, item.pending_events, item.count) == (1, (), 1)
