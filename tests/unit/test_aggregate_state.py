"""An aggregate's state goes into bytes and comes back the same, or is refused when it is taken."""

import enum
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar
from zoneinfo import ZoneInfo

import msgspec
import pytest

from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.state import capture, codec_of, restore
from cqrs_celery.errors import RegistrationError, SnapshotError
from cqrs_celery.messages.message import Event
from cqrs_celery.messages.sameness import difference


class StateChanged(Event):
    pass


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Word(enum.StrEnum):
    YES = "yes"


class Line(msgspec.Struct):
    sku: str
    count: int = 1


@dataclass
class Place:
    shelf: str
    row: int


class Rich(Aggregate):
    LIMIT: ClassVar[int] = 7
    name: str = ""
    price: Decimal = Decimal(0)
    colour: Colour | None = None
    lines: list[Line] = []  # noqa: RUF012
    places: dict[int, Place] = {}  # noqa: RUF012
    tags: set[str] = set()  # noqa: RUF012
    pair: tuple[int, str] | None = None
    seen_at: datetime | None = None
    data: bytes = b""
    _hidden: float = 0.0
    later: str


def rich() -> Rich:
    it = Rich("42")
    it.name = 'naïve 🔩 "x" \x00'
    it.price = Decimal("1.10")
    it.colour = Colour.BLUE
    it.lines.append(Line("a", 3))
    it.places[7] = Place("top", 2)
    it.places[1] = Place("low", 1)
    it.tags |= {"x", "y"}
    it.pair = (1, "one")
    it.seen_at = datetime(2026, 1, 2, 3, 4, 5, 678_901, tzinfo=UTC)
    it.data = b"\x00\xff"
    it._hidden = 0.1
    return it


def is_same(one: Any, other: Any) -> bool:
    return difference(one, other, exact=True) is None


def state(aggregate: Aggregate) -> dict[str, Any]:
    return {name: value for name, value in vars(aggregate).items() if name != "__ledger__"}


def test_every_annotated_attribute_comes_back_the_same():
    it = rich()
    back = restore(Rich, "42", 9, capture(it))
    assert is_same(state(back), state(it))
    assert (back.id, back.version, back.pending_events) == ("42", 9, ())


def test_what_was_not_set_is_not_set_afterwards():
    back = restore(Rich, "42", 1, capture(Rich("42")))
    assert is_same(state(back), state(Rich("42")))
    assert not hasattr(back, "later")
    assert "name" not in vars(back)


def test_a_mutable_default_that_was_deleted_stays_so():
    it = Rich("42")
    del it.lines
    assert "lines" not in vars(restore(Rich, "42", 1, capture(it)))


def test_nothing_is_shared_with_what_was_captured():
    it = rich()
    back = restore(Rich, "42", 9, capture(it))
    back.lines.append(Line("b"))
    back.lines[0].count = 99
    assert it.lines == [Line("a", 3)]


def test_attributes_of_bases_are_part_of_it():
    class Base(Aggregate):
        one: int = 0

    class Below(Base):
        two: int = 0

    it = Below("1")
    it.one, it.two = 1, 2
    back = restore(Below, "1", 1, capture(it))
    assert (back.one, back.two) == (1, 2)


def test_an_attribute_that_is_not_annotated_is_refused_and_named():
    it = rich()
    it.extra = 1  # type: ignore[attr-defined]
    with pytest.raises(SnapshotError, match=r"Rich-42 .*does not annotate: \['extra'\]") as error:
        capture(it)
    assert error.value.aggregate == "Rich-42"


def test_at_the_start_it_is_found_with_a_new_aggregate():
    class Loose(Aggregate, snapshot_every=5):
        def __init__(self, id: str) -> None:
            super().__init__(id)
            self.names: list[str] = []

    with pytest.raises(RegistrationError, match="names"):
        codec_of(Loose).check()
    codec_of(Rich).check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 5),
        ("name", None),
        ("lines", (Line("a"),)),
        ("lines", [{"sku": "a"}]),
        ("places", {"7": Place("top", 2)}),
        ("pair", [1, "one"]),
        ("_hidden", float("nan")),
        ("_hidden", 1),
        ("price", 1),
        ("data", bytearray(b"x")),
        ("name", Word.YES),
        ("lines", [Line("a", True)]),
        ("places", OrderedDict({7: Place("top", 2)})),
        ("seen_at", datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))),
        ("seen_at", datetime(2026, 10, 25, 2, 30, fold=1)),
    ],
)
def test_a_value_that_would_come_back_as_another_is_refused(name, value):
    it = rich()
    setattr(it, name, value)
    with pytest.raises(SnapshotError, match="Rich-42"):
        capture(it)


def test_a_time_whose_zone_would_be_lost_is_named_and_told_how_to_keep():
    it = rich()
    it.seen_at = datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Berlin"))
    with pytest.raises(SnapshotError) as refused:
        capture(it)
    assert "seen_at is datetime.datetime(2026, 1, 1, 0, 0, tzinfo=zoneinfo.ZoneInfo(" in str(
        refused.value
    )
    assert "with a fixed offset. Keep it in UTC" in str(refused.value)


def test_a_time_of_a_zone_that_never_changes_its_offset_is_kept():
    it = rich()
    for zone in (UTC, ZoneInfo("UTC"), timezone(timedelta(hours=-9))):
        it.seen_at = datetime(2026, 1, 1, tzinfo=zone)
        assert restore(Rich, "42", 9, capture(it)).seen_at == it.seen_at


def test_a_value_that_an_equality_of_its_own_hides_is_refused():
    class ById(msgspec.Struct):
        id: str
        price: Any

        def __eq__(self, other: object) -> bool:
            return isinstance(other, ById) and other.id == self.id

        def __hash__(self) -> int:
            return hash(self.id)

    class Priced(Aggregate):
        parts: dict[str, ById] = {}  # noqa: RUF012

    Priced.__annotations__["parts"] = dict[str, ById]
    it = Priced("1")
    it.parts["x"] = ById("x", (1,))
    with pytest.raises(SnapshotError, match=r"parts\['x'\]\.price is \(1,\) of the type tuple"):
        capture(it)


def test_a_type_that_json_changes_is_refused_where_anything_is_allowed():
    class Loosely(Aggregate):
        thing: Any = None

    it = Loosely("1")
    refused: list[Any] = [(1, 2), Colour.RED, {1: 2}, datetime.now(UTC), {"x"}]
    for it.thing in refused:
        with pytest.raises(SnapshotError):
            capture(it)
    kept: list[Any] = [[1, 2.5, None, "x"], {"b": 1, "a": [True]}]
    for it.thing in kept:
        assert is_same(restore(Loosely, "1", 1, capture(it)).thing, it.thing)


def test_a_state_that_holds_itself_is_refused():
    class Loosely(Aggregate):
        thing: list[Any] = []  # noqa: RUF012

    it = Loosely("1")
    it.thing.append(it.thing)
    with pytest.raises(SnapshotError):
        capture(it)


def test_what_is_not_committed_is_refused():
    it = rich()
    it.record(StateChanged())
    with pytest.raises(SnapshotError, match="not committed"):
        capture(it)


def test_the_bytes_of_a_class_with_other_attributes_do_not_fit():
    def made(hint: Any) -> type[Aggregate]:
        namespace = {"__annotations__": {"thing": hint}, "__module__": __name__}
        return type("Made", (Aggregate,), namespace)

    it = made(int)("1")
    it.thing = 5  # type: ignore[attr-defined]
    data = capture(it)
    assert restore(made(int), "1", 1, data).thing == 5  # type: ignore[attr-defined]
    for other in (float, str, int | None, list[int]):
        with pytest.raises(SnapshotError, match="other attributes"):
            restore(made(other), "1", 1, data)


def test_the_bytes_do_not_fit_when_a_type_inside_has_changed():
    def made(*fields: Any) -> type[Aggregate]:
        inner: Any = msgspec.defstruct("Inner", fields)
        namespace = {"__annotations__": {"things": list[inner]}, "__module__": __name__}
        return type("Made", (Aggregate,), namespace)

    data = capture(made(("sku", str))("1"))
    restore(made(("sku", str)), "1", 1, data)
    with pytest.raises(SnapshotError, match="other attributes"):
        restore(made(("sku", str), ("count", int, 1)), "1", 1, data)


@pytest.mark.parametrize(("omits", "fits"), [(True, False), (False, True)])
def test_the_bytes_do_not_fit_where_a_default_that_is_not_in_them_has_changed(omits, fits):
    def made(default: str) -> type[Aggregate]:
        fields: Any = [("currency", str, default)]
        inner: Any = msgspec.defstruct("Inner", fields, omit_defaults=omits)
        namespace = {"__annotations__": {"thing": inner}, "__module__": __name__}
        return type("Made", (Aggregate,), {**namespace, "thing": inner()})

    data = capture(made("EUR")("1"))
    restore(made("EUR"), "1", 1, data)
    if fits:
        restore(made("USD"), "1", 1, data)
    else:
        with pytest.raises(SnapshotError, match="other attributes"):
            restore(made("USD"), "1", 1, data)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"shape":1}', b"\xff"])
def test_damaged_bytes_are_one_clear_error(data):
    with pytest.raises(SnapshotError, match="Rich-42"):
        restore(Rich, "42", 9, data)


def test_a_class_may_say_its_state_itself():
    class Totals(msgspec.Struct):
        total: int

    class Own(Aggregate):
        def __init__(self, id: str) -> None:
            super().__init__(id)
            self.parts = [0]
            self.cached_total = 0

        def to_snapshot(self) -> Totals:
            return Totals(sum(self.parts))

        def from_snapshot(self, state: Totals) -> None:
            self.parts = [state.total]
            self.cached_total = state.total

    Own.to_snapshot.__annotations__["return"] = Totals
    it = Own("1")
    it.parts += [2, 3]
    back = restore(Own, "1", 7, capture(it))
    assert (back.parts, back.cached_total, back.version) == ([5], 5, 7)


def test_one_of_the_two_methods_is_not_enough():
    class Half(Aggregate):
        def to_snapshot(self) -> int:
            return 1

    with pytest.raises(RegistrationError, match="to_snapshot, but not from_snapshot"):
        capture(Half("1"))


def test_a_type_that_msgspec_has_no_form_for_is_an_error_at_the_start():
    class Odd(Aggregate):
        thing: complex = 0j

    with pytest.raises(RegistrationError, match=r"Odd.*to_snapshot and from_snapshot"):
        codec_of(Odd)


def test_slots_are_refused():
    class Slotted(Aggregate):
        __slots__ = ("hidden",)

    with pytest.raises(RegistrationError, match="__slots__"):
        codec_of(Slotted)


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "3", 2**31])
def test_intervals_and_versions_are_whole_numbers_from_1(number):
    for option in ("snapshot_every", "snapshot_version"):
        with pytest.raises(RegistrationError, match=option):
            type("Odd", (Aggregate,), {}, **{option: number})
