"""What is read is what was recorded; what could not be is refused where the mistake is made."""

from __future__ import annotations

import dataclasses
import enum
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar, Generic, NamedTuple, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import msgspec
import pytest

from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.errors import (
    AggregateError,
    MalformedMessage,
    RegistrationError,
    UnwritableMessage,
)
from cqrs_celery.messages.codec import codec_of
from cqrs_celery.messages.forms import form_of
from cqrs_celery.messages.markers import has_marked_object
from cqrs_celery.messages.message import (
    Command,
    Event,
    MessageMeta,
    Query,
    unknown_fields_of,
)
from cqrs_celery.messages.sameness import Difference, difference
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.testing.given_when_then import given, when
from cqrs_celery.testing.scenario import in_memory

T = TypeVar("T")


BERLIN = ZoneInfo("Europe/Berlin")
WINTER = timezone(timedelta(hours=1))


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mixed(enum.Enum):
    TEXT = "a"
    NUMBER = 1


class Place(msgspec.Struct):
    name: str


class NumberedPlace(Place):
    number: int = 0


@dataclasses.dataclass
class Weight:
    grams: int


@dataclasses.dataclass(frozen=True)
class Span:
    days: int
    notes: tuple[str, ...] = ()


class Named(msgspec.Struct, frozen=True):
    """A struct that is the same as another one of its name."""

    name: str
    note: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Named) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


class NamedMore(Named, frozen=True):
    more: int = 0


class NamedRow(NamedTuple):
    name: str
    note: Any = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NamedRow) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclasses.dataclass(frozen=True)
class Remark:
    """A dataclass of which a field is not compared."""

    name: str
    note: Any = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(eq=False)
class Tagged:
    """A dataclass with an equality of its own, which looks at its class and its names."""

    name: str
    note: Any = None

    def __eq__(self, other: object) -> bool:
        is_same = other.__class__ is self.__class__ and self.name == other.name
        return is_same and (self.note is None) is (other.note is None)  # type: ignore[attr-defined]


Marked = TypedDict("Marked", {"__type__": str, "__value__": str})


class MarkedStruct(msgspec.Struct, rename={"a": "__type__", "b": "__value__"}):
    a: str
    b: str


class Text(str):
    """A subclass of str, which msgspec does not write."""

    __slots__ = ()


class Handle:
    """A class that JSON has no form for."""


def made(annotation: Any, *, base: type[Any] = Event, **defaults: Any) -> Any:
    """Make a message class with one field, `value`."""
    namespace = {"__annotations__": {"value": annotation}, "__module__": __name__, **defaults}
    return MessageMeta("ValueHeld", (base,), namespace, name="values.held")


def copies(message: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the store's path reads of a message, and what the task's path does."""
    serializer = Serializer("values")
    kind = message.__kind__
    yield "store", serializer.decode(kind, *serializer.encode(message))
    plain = json.loads(json.dumps(serializer.to_plain(message)))
    yield "task", serializer.from_plain(kind, plain)


# ------------------------------------------------------------ an event is frozen when recorded


class ValuesOrdered(Event):
    lines: list[str]


class Cart(Aggregate, name="ValuesCart"):
    lines: list[str] = []  # noqa: RUF012

    def order(self, lines: list[str]) -> None:
        self.record(ValuesOrdered(lines=lines))

    @applies(ValuesOrdered)
    def _ordered(self, event: ValuesOrdered) -> None:
        self.lines = event.lines
        self.lines.append("a line of the aggregate's own")


def test_what_an_applies_method_keeps_and_changes_does_not_change_the_event() -> None:
    # given
    cart = Cart("1")
    # when
    cart.order(["bolt"])
    # then
    (pending,) = cart.pending_events
    assert pending.event == ValuesOrdered(lines=["bolt"])
    assert json.loads(pending.data) == {"lines": ["bolt"]}


def test_what_the_caller_changes_afterwards_changes_neither_event_nor_aggregate() -> None:
    # given
    cart, lines = Cart("1"), ["bolt"]
    cart.order(lines)
    # when
    lines.append("nut")
    seen: Any = cart.pending_events[0].event
    seen.lines.append("nut")
    # then
    assert cart.pending_events[0].event == ValuesOrdered(lines=["bolt"])
    assert cart.lines == ["bolt", "a line of the aggregate's own"]


def test_given_when_then_sees_the_event_that_would_be_stored() -> None:
    history = ValuesOrdered(lines=["nut"])
    given(Cart, "1", history).when(Cart.order, ["bolt"]).then(ValuesOrdered(lines=["bolt"]))
    assert history == ValuesOrdered(lines=["nut"])


def test_given_when_then_refuses_a_history_that_could_not_have_been_stored() -> None:
    with pytest.raises(UnwritableMessage, match=r"\$\.lines"):
        given(Cart, "1", ValuesOrdered(lines=[1])).when(Cart.order, [])  # type: ignore[list-item]


def test_an_event_that_can_not_be_written_is_an_outcome_of_the_action() -> None:
    lines: Any = ("bolt",)
    error = given(Cart, "1").when(Cart.order, lines).raises(UnwritableMessage)
    assert (error.name, error.version) == ("ValuesOrdered", 1)
    text = "the field 'lines' holds ('bolt',) of the type tuple, which would come back as ['bolt']"
    assert text in str(error)


def test_in_the_hour_that_a_clock_repeats_an_event_can_be_recorded_and_expected() -> None:
    # given: to Python, this time is equal to none of another time zone
    at = datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    cls = made(datetime)

    def create() -> Cart:
        cart = Cart("1")
        cart.record(cls(value=at))
        return cart

    # then
    outcome = when(create).then(cls(value=at))
    recorded: Any = outcome.aggregate.pending_events[0].event
    assert recorded.value.utcoffset() == at.utcoffset()


@pytest.mark.parametrize("wrong", [Event(), Place("x"), None, "an event", ValuesOrdered])
def test_what_is_no_event_is_not_recorded(wrong: Any) -> None:
    cart = Cart("1")
    with pytest.raises(AggregateError, match="expected an instance of a subclass of Event"):
        cart.record(wrong)


# ------------------------------------------------------------ values that would change


@pytest.mark.parametrize(
    ("annotation", "value", "text"),
    [
        (float, float("nan"), "Expected `float`, got `null`"),
        (float | None, float("nan"), "holds nan of the type float, which would come back as None"),
        (float | None, float("inf"), "holds inf of the type float"),
        (Any, float("nan"), "holds nan of the type float"),
        (Any, [1, {"a": float("-inf")}], r"the field \"value\[1\]\['a'\]\" holds -inf"),
        (Any, datetime(2026, 1, 1, tzinfo=UTC), "of the type datetime, which would come back as '"),
        (Any, Decimal("1.50"), "of the type Decimal, which would come back as '1.50' of the type"),
        (Any, (1, 2), "of the type tuple"),
        (Any, {1: 2}, r"the field 'value' has the key 1 of the type int, which would come back as"),
        (Any, b"x", "of the type bytes"),
        (Any, {1, 2}, "of the type set"),
        (Any, Weight(1), "of the type Weight"),
        (object, Place("x"), "of the type Place"),
        (Any, {"__type__": "decimal", "__value__": "1"}, "only keys are __type__ and __value__"),
        (
            dict[str, str],
            {"__value__": "1", "__type__": "?"},
            "only keys are __type__ and __value__",
        ),
        (dict[Any, int], {1: 2}, "'value' has the key 1 of the type int"),
        (dict[str, int], {1: 2}, "'value' has the key 1 of the type int"),
        (dict[int | str, int], {1: 2}, "'value' has the key 1 of the type int"),
        (dict[str, int], {1: 1, "1": 2}, "which would come back as"),
        (dict[str, int], {"1": 1, 1: 2}, "which would come back as"),
        (
            tuple[Decimal, float | None],
            (Decimal("sNaN"), float("nan")),
            r"'value\[1\]' holds nan of the type float",
        ),
        # Berlin's clocks were 53 minutes and 28 seconds ahead then; JSON has no seconds there.
        (datetime, datetime(1850, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")), "of the type datetime"),
        (list[int], (1,), "of the type tuple"),
        (Sequence[int], (1,), "of the type tuple"),
        (str, datetime(2026, 1, 1, tzinfo=UTC), "of the type datetime"),
        (float, 10**25, "which would come back as 1e.25"),
        (Decimal, 0.1, r"which would come back as Decimal\('0.1'\)"),
        (Place, NumberedPlace("x", 5), "of the type NumberedPlace"),
        (OrderedDict, OrderedDict(a=1), "no form"),
        # What an equality of their own passes over.
        (Named, Named("a", float("nan")), r"'value\.note' holds nan of the type float"),
        (list[Named], [Named("a", Decimal("1.5"))], r"'value\[0\]\.note' holds Decimal"),
        (frozenset[Named], frozenset({Named("a", (1,))}), "'value' holds frozenset"),
        (dict[str, NamedRow], {"x": NamedRow("a", (1,))}, r"value\['x'\]\.note\" holds \(1,\)"),
        (Remark, Remark("a", datetime(2026, 1, 1)), "'value.note' holds datetime"),
        (Remark | None, Remark("a", b"x"), "'value.note' holds b'x' of the type bytes"),
        (list[Tagged], [Tagged("a", b"x")], r"'value\[0\].note' holds b'x' of the type bytes"),
        (Named, NamedMore("a", 1, 5), "of the type NamedMore, which would come back as"),
        # Which of two times of a repeated hour a time without a zone is, JSON does not say.
        (datetime, datetime(2026, 10, 25, 2, 30, fold=1), "fold=1"),
        (datetime | None, datetime(2026, 10, 25, 2, 30, fold=1), "fold=1"),
        (list[datetime], [datetime(2026, 10, 25, 2, 30, fold=1)], "fold=1"),
        (time, time(2, 30, fold=1), "fold=1"),
        (time, time(2, 30, tzinfo=ZoneInfo("Europe/Berlin")), "Europe/Berlin"),
        (Marked, {"__type__": "uuid", "__value__": "x"}, "only keys are __type__ and __value__"),
        (MarkedStruct, MarkedStruct("bytes", "x"), "only keys are __type__ and __value__"),
        # The field is named, and what it holds.
        (float, float("nan"), "the field 'value' holds nan of the type float: Expected `float`"),
        (str, "\ud800", "the field 'value' holds '.ud800' of the type str: "),
        (Any, Text("x"), "the field 'value' holds 'x' of the type Text: Encoding objects"),
        (date, datetime(2026, 1, 1), "the field 'value' holds datetime.* of the type datetime: "),
        (Decimal, "1.5", "the type str, which would .* Convert it to Decimal, or declare"),
        (float | None, float("inf"), "JSON has no form for it"),
    ],
)
def test_a_value_that_would_not_come_back_is_refused_and_named(
    annotation: Any, value: Any, text: str
) -> None:
    try:
        message = made(annotation)(value=value)
    except RegistrationError as refused:
        assert text in str(refused)  # noqa: PT017
        return
    for write in (Serializer("values").encode, Serializer("values").to_plain, json_of):
        with pytest.raises(UnwritableMessage, match=text):
            write(message)


def json_of(message: Any) -> Any:
    """Write a message as Celery's encoder does, in a chain."""
    return message.__json__()


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dict[int, str], {1: "a", -5: "b"}),
        (dict[float, int], {1.5: 1, -0.25: 2}),
        (dict[Level, int], {Level.LOW: 1}),
        (dict[Decimal, int], {Decimal("1.50"): 1}),
        (dict[int, dict[int, list[dict[float, int]]]], {1: {2: [{0.5: 1}]}}),
        (dict[int, Place] | None, {7: Place("x")}),
        (int, 10**40),
        (Any, 10**40),
        (Any, {"a": [1, 2.5, None, True, "x", {}]}),
        (Any, {"__type__": 1}),
        (dict[str, str], {"__type__": "a", "__value__": "b", "more": "c"}),
        (Decimal, Decimal("NaN")),
        (list[Decimal], [Decimal("sNaN"), Decimal("-Infinity"), Decimal("1E+400")]),
    ],
)
def test_store_and_task_read_the_same(annotation: Any, value: Any) -> None:
    message = made(annotation)(value=value)
    for path, copy in copies(message):
        assert repr(copy) == repr(message), path


def test_a_value_that_is_equal_in_the_declared_type_comes_back_in_that() -> None:
    for annotation, value, expected in (
        (float, 5, 5.0),
        (Decimal, 5, Decimal(5)),
        (int, Level.HIGH, 2),
        (dict[str, int], OrderedDict(a=1), {"a": 1}),
    ):
        for path, copy in copies(made(annotation)(value=value)):
            assert (copy.value, type(copy.value)) == (expected, type(expected)), path


def test_values_in_a_struct_that_never_says_it_is_equal_are_compared_field_by_field() -> None:
    class Silent(msgspec.Struct, eq=False):
        rate: float | None

    cls = made(list[Silent])
    for _, copy in copies(cls(value=[Silent(0.5)])):
        assert copy.value[0].rate == 0.5
    with pytest.raises(UnwritableMessage, match=r"the field 'value\[0\]\.rate' holds nan"):
        Serializer("values").encode(cls(value=[Silent(float("nan"))]))


def test_values_whose_equality_is_their_own_come_back() -> None:
    for annotation, value in (
        (Named, Named("a", [1.5, None])),
        (frozenset[Named], frozenset({Named("a", 1), Named("b", "x")})),
        (dict[str, NamedRow], {"x": NamedRow("a", 1)}),
        (Remark, Remark("a", {"b": True})),
        (set[datetime], {datetime(2026, 10, 25, 2, n, fold=1, tzinfo=BERLIN) for n in range(9)}),
        (time, time(2, 30, fold=1, tzinfo=UTC)),
    ):
        for path, copy in copies(made(annotation)(value=value)):
            assert difference(value, copy.value) is None, path


def test_an_int_in_a_set_of_floats_comes_back_as_the_equal_float() -> None:
    for _, copy in copies(made(set[float])(value={1, 2})):
        assert copy.value == {1.0, 2.0}
    assert difference({1, 2}, {1.0, 2.0}) is None
    assert difference({(1, 2)}, {(1.0, 2.0)}) is None
    assert difference({1, 2}, {1.0, 2.0}, exact=True) is not None


def test_what_is_compared_exactly_keeps_its_types() -> None:
    for one, other in (
        (1, 1.0),
        (True, 1),
        (Level.LOW, 1),
        (OrderedDict(a=1), {"a": 1}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": [1]}, {"a": [1.0]}),
        ({"a": [bytearray(b"x")]}, {"a": [b"x"]}),
        ([(1, 2)], [[1, 2]]),
        (Place("x"), NumberedPlace("x")),
        (datetime(2026, 1, 1, tzinfo=BERLIN), datetime(2026, 1, 1, tzinfo=WINTER)),
    ):
        assert difference(one, other, exact=True) is not None, (one, other)
        assert difference(one, one, exact=True) is None, one
    for zone in (UTC, ZoneInfo("UTC")):
        one, other = datetime(2026, 1, 1, tzinfo=zone), datetime(2026, 1, 1, tzinfo=UTC)
        assert difference(one, other, exact=True) is None


@pytest.mark.parametrize("base", [Event, Command])
def test_a_nested_struct_that_leaves_its_defaults_out_is_refused(base: type[Any]) -> None:
    class Brief(msgspec.Struct, omit_defaults=True):
        currency: str = "EUR"

    with pytest.raises(RegistrationError) as refused:
        made(list[Brief] | None, base=base)
    assert "has the field 'value[]' of the type" in str(refused.value)
    assert "which has omit_defaults = True: a value that was left out" in str(refused.value)


def test_a_nested_message_that_keeps_unknown_fields_is_refused_since_it_would_lose_them() -> None:
    class ValuesKept(Event, unknown_fields="keep"):
        number: int

    with pytest.raises(
        RegistrationError, match=r"unknown_fields='keep': unknown fields are kept only of"
    ):
        made(dict[str, ValuesKept])


def test_an_object_that_celerys_json_misreads_is_found_among_unknown_fields_too() -> None:
    class ValuesKeepingMore(Event, unknown_fields="keep"):
        number: int

    kept = codec_of(ValuesKeepingMore).read(b'{"number":1,"x":{"__type__":"a","__value__":"b"}}')
    with pytest.raises(UnwritableMessage, match="only keys are __type__ and __value__"):
        Serializer("values").encode(kept)


def test_fields_that_a_class_keeps_though_it_lacks_them_come_back_by_every_way() -> None:
    class ValuesKeeping(Event, unknown_fields="keep"):
        counts: dict[int, int]

    serializer, name = Serializer("values"), "values.ValuesKeeping"
    plain = {"counts": {"1": 2}, "more": [1, {"a": None}]}
    (kept,) = serializer.convert_all("event", name, 1, plain)
    assert kept == ValuesKeeping(counts={1: 2})
    assert unknown_fields_of(kept) == {"more": [1, {"a": None}]}
    for path, copy in copies(kept):
        assert (copy, unknown_fields_of(copy)) == (kept, unknown_fields_of(kept)), path


def test_a_subclass_is_read_by_a_codec_of_its_own() -> None:
    class ValuesAsk(Query):
        one: int

    class ValuesAskMore(ValuesAsk):
        other: int

    for cls in (ValuesAsk, ValuesAskMore):
        assert codec_of(cls).cls is cls


# ------------------------------------------------------------ refused when the class is made


@pytest.mark.parametrize("base", [Event, Command])
@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Handle, "of the type tests.unit.test_values.Handle, which has no form in JSON. Use one"),
        (list[Handle], "has the field 'value[]' of the type"),
        (Handle | None, "has the field 'value' of the type"),
        (complex, "of the type builtins.complex"),
        (Iterator[int], "of the type collections.abc.Iterator"),
        (msgspec.Raw, "which has no form in JSON"),
        (dict[bool, int], "whose keys are of the type bool; keys of JSON objects are texts"),
        (dict[tuple[int, int], int], "whose keys are of the type tuple"),
        (dict[str, dict[None, int]], "has a dict in the field 'value[]' whose keys"),
        (Mixed, "has the field 'value' of a type that can't be read from JSON"),
        (Place | NumberedPlace, "has the field 'value' of a type that can't be read from JSON"),
        (bytes | str, "more than one str-like type"),
    ],
)
def test_a_field_that_json_has_no_form_for_is_refused(
    base: type[Any], annotation: Any, text: str
) -> None:
    with pytest.raises(RegistrationError) as refused:
        made(annotation, base=base)
    assert f"{__name__}.ValueHeld" in str(refused.value)
    assert text in str(refused.value)


def test_a_field_without_a_type_is_refused_and_told_how_to_write_it() -> None:
    with pytest.raises(RegistrationError) as refused:

        class ValuesUntyped(Event):
            count = 5

    text = str(refused.value)
    assert "ValuesUntyped" in text
    assert "has count = 5 without a type, so it is not a field" in text
    assert "`count: int = 5`" in text
    assert "`count: ClassVar[int] = 5`" in text


def test_what_a_class_has_besides_its_fields_is_its_own() -> None:
    class ValuesWithMore(Event):
        MOST = 5
        least: ClassVar[int] = 1
        count: int = 2
        _private = 7

        @property
        def twice(self) -> int:
            return self.count * 2

        @staticmethod
        def three() -> int:
            return 3

        class Inner:
            pass

    assert ValuesWithMore.__struct_fields__ == ("count",)
    assert (ValuesWithMore().twice, ValuesWithMore.MOST) == (4, 5)


@pytest.mark.parametrize(
    "default",
    [[1], {"a": 1}, {1}, bytearray(b"x"), Place("x"), Weight(1), Span(1, ([],))],  # type: ignore[arg-type]
)
def test_a_default_that_messages_would_share_is_refused(default: Any) -> None:
    with pytest.raises(RegistrationError) as refused:
        made(type(default), value=default)
    text = str(refused.value)
    assert f"{__name__}.ValueHeld" in text
    assert f"has the default {default!r} for its field 'value'" in text
    assert "msgspec.field(default_factory=lambda:" in text


@pytest.mark.parametrize("default", [[], {}, set(), (), Span(1), 5, None, "x", Level.LOW])
def test_a_default_that_nobody_can_change_is_accepted(default: Any) -> None:
    cls = made(type(default), value=default)
    assert cls().value == default
    if isinstance(default, (list, dict, set)):
        assert cls().value is not cls().value


def test_a_generic_message_is_refused_since_its_parameter_is_not_stored() -> None:
    with pytest.raises(RegistrationError, match="is generic in T, which is not stored"):

        class ValuesBoxed(Event, Generic[T]):
            value: T


def test_a_generic_value_in_a_message_keeps_its_parameter() -> None:
    class Box(msgspec.Struct, Generic[T]):
        value: T

    message = made(Box[Decimal])(value=Box(Decimal("1.50")))
    for _, copy in copies(message):
        assert copy.value.value == Decimal("1.50")
        assert type(copy.value.value) is Decimal


def test_a_query_never_leaves_its_process_so_it_may_hold_anything() -> None:
    handle = Handle()
    assert made(Handle, base=Query)(value=handle).value is handle


def test_a_type_that_is_not_defined_yet_is_found_at_the_first_use() -> None:
    # given: a class whose field is of a type further down, or nowhere
    cls = made("list[DefinedLater]")
    with pytest.raises(RegistrationError, match="whose type is not defined: name 'DefinedLater"):
        Serializer("values").encode(cls(value=[Place("x")]))
    # when
    globals()["DefinedLater"] = Place
    try:
        # then
        for _, copy in copies(cls(value=[Place("x")])):
            assert copy == cls(value=[Place("x")])
    finally:
        del globals()["DefinedLater"]


def test_a_worker_does_not_start_with_a_message_whose_type_is_not_defined() -> None:
    with in_memory("values") as cqrs:
        cqrs.check_handlers()
        made("list[DefinedNever]")
        try:
            with pytest.raises(RegistrationError, match="ValueHeld has a field whose type is not"):
                cqrs.check_handlers()
        finally:
            made(int)


def test_a_class_that_was_refused_takes_no_name() -> None:
    with pytest.raises(RegistrationError):
        MessageMeta("ValueOne", (Event,), {"__annotations__": {"x": Handle}}, name="values.free")
    MessageMeta("ValueOther", (Event,), {"__annotations__": {"x": int}}, name="values.free")


def test_an_error_of_writing_is_told_from_one_of_reading() -> None:
    cls = made(int)
    with pytest.raises(UnwritableMessage):
        Serializer("values").encode(cls(value="5"))
    with pytest.raises(MalformedMessage) as refused:
        Serializer("values").decode("event", "values.held", 1, b'{"value":"5"}')
    assert type(refused.value) is MalformedMessage


# ------------------------------------------------------------ an aggregate's defaults are its own


class Purse:
    """A plain class, which says nothing about whether it may be changed."""

    def __init__(self) -> None:
        self.coins: list[int] = []


class Shelf(Aggregate, name="ValuesShelf"):
    weight: Weight = Weight(0)
    span: Span = Span(1, ([],))  # type: ignore[arg-type]
    place: Place = Place("hall")
    pair: tuple[list[int], int] = ([], 1)
    purse: Purse = Purse()
    counts: dict[str, int] = {}  # noqa: RUF012
    level: Level = Level.LOW
    shared: ClassVar[Purse] = Purse()
    CONSTANT = Weight(1)


def test_no_default_of_an_aggregate_is_shared_with_another() -> None:
    # given
    one, other = Shelf("1"), Shelf("2")
    # when
    one.weight.grams = 5
    one.span.notes[0].append("x")  # type: ignore[attr-defined]
    one.place.name = "cellar"
    one.pair[0].append(1)
    one.purse.coins.append(1)
    one.counts["a"] = 1
    # then
    for shelf in (other, Shelf("3")):
        assert (shelf.weight.grams, shelf.place.name) == (0, "hall")
        assert repr(shelf.span.notes) == "([],)"
        assert (shelf.pair, shelf.purse.coins, shelf.counts) == (([], 1), [], {})
    assert one.CONSTANT is other.CONSTANT
    assert one.shared is other.shared
    assert one.level is other.level is Level.LOW


def test_a_default_that_can_not_be_copied_is_refused() -> None:
    with pytest.raises(RegistrationError, match=r"lock = .*can't be copied") as no:

        class ValuesLocked(Aggregate):
            lock: Any = threading.Lock()

    assert "Set it in __init__" in str(no.value)


def test_the_fields_that_a_message_lacks_are_compared_too() -> None:
    class ValuesLacking(Event, unknown_fields="keep"):
        number: int

    read = codec_of(ValuesLacking).read
    one, other = read(b'{"number":1,"more":2}'), read(b'{"number":1,"more":3}')
    bare = ValuesLacking(number=1)
    for sent, back in ((one, other), (one, bare), (bare, one)):
        assert difference(sent, back) is not None
    assert difference(one, read(b'{"number":1,"more":2}')) is None


def test_a_key_that_is_no_text_makes_a_message_that_comes_malformed() -> None:
    with pytest.raises(MalformedMessage, match="surrogates"):
        Serializer("values").convert_all("event", made(int).__registered__.name, 1, {"\ud800": 1})


@pytest.mark.parametrize("around", ["{}", "[{}]", '{{"a": [[{}]]}}', '[1, {{"b": {}}}]'])
def test_an_object_that_celery_s_json_would_read_as_its_own_is_found_at_any_depth(
    around: str,
) -> None:
    assert has_marked_object(around.format('{"__type__": "t", "__value__": 1}').encode())
    assert not has_marked_object(
        around.format('{"__type__": "t", "__value__": 1, "more": 2}').encode()
    )


def test_a_number_s_name_comes_back_as_the_number_and_nothing_else_of_it() -> None:
    # given a member of an IntEnum in the place of an int
    assert difference(Level.LOW, 1) is None
    assert difference([Level.LOW], [1]) is None
    # but not another number, nor a member that is no number
    assert difference(Level.LOW, 2) == Difference("", Level.LOW, 2)
    assert difference(Mixed.NUMBER, 1) == Difference("", Mixed.NUMBER, 1)
    assert difference(Level.LOW, 1, exact=True) == Difference("", Level.LOW, 1)


@pytest.mark.parametrize("kind", [set, frozenset])
def test_a_set_that_comes_back_with_more_or_fewer_members_is_another(kind: Any) -> None:
    for sent, back in (({1}, {1, 2}), ({1, 2}, {1}), (set(), {1})):
        assert difference(kind(sent), kind(back)) == Difference("", kind(sent), kind(back))
    assert difference(kind({1, 2}), kind({2, 1})) is None


def test_of_each_field_is_known_whether_equal_values_may_differ() -> None:
    class ValuesTimed(Event):
        number: int
        at: datetime
        until: datetime | None
        day: date
        hours: list[time]

    # a moment is compared by its zone and offset alone; what holds times, part by part
    form = form_of(ValuesTimed)
    assert (form.times, form.compared) == (("at", "until"), ("hours",))

    class ValuesAlike(Event):
        number: int
        at: datetime

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    # an equality of the class's own may pass over any field, so each is compared
    form = form_of(ValuesAlike)
    assert (form.times, form.compared) == ((), ("number", "at"))


@dataclasses.dataclass
class Whole:
    number: int
    note: str


@dataclasses.dataclass
class Partly:
    number: int
    note: str = dataclasses.field(compare=False)


def test_a_dataclass_that_leaves_a_field_out_of_its_equality_is_compared_part_by_part() -> None:
    class ValuesOfDataclasses(Event):
        whole: Whole
        partly: Partly

    assert form_of(ValuesOfDataclasses).compared == ("partly",)
