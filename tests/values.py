"""Message classes and values of every shape, and all the ways by which a value is read again.

    python -m tests.values --examples 2000

makes so many classes, each with some values, and prints what became of them. A class is accepted or
refused when it is made; a value is refused when it is recorded, or comes back equal, in value and
in type, by every way: store, task, fan-out, subscription, command, cache, snapshot, result and
`given/when/then`, compressed and not.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import itertools
import sys
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st
from kombu.utils import json as kombu_json

from cqrs_celery.backends.memory.event_store import MemoryEventStore
from cqrs_celery.backends.memory.state_cache import MemoryStateCache
from cqrs_celery.dispatch.envelope import pack_command, pack_event, unpack_command, unpack_events
from cqrs_celery.dispatch.results import Returned
from cqrs_celery.domain.aggregate import Aggregate
from cqrs_celery.domain.applies import applies
from cqrs_celery.domain.state import capture, restore
from cqrs_celery.errors import RegistrationError, SnapshotError, UnwritableMessage
from cqrs_celery.messages.compression import Compression
from cqrs_celery.messages.message import Command, Event, MessageMeta
from cqrs_celery.messages.serializer import Serializer
from cqrs_celery.session.cache import AggregateCache
from cqrs_celery.session.repository import Repository
from cqrs_celery.store.decoding import recorded_events
from cqrs_celery.testing.given_when_then import given as given_history

Values = st.SearchStrategy[Any]


class Kind(NamedTuple):
    """A type that a field may be declared with.

    Attributes:
        hint: the annotation.
        good: values of the type that must come back.
        is_sure: whether a class with it must be accepted; of a union, msgspec decides.
        is_refused: whether a class with it must be refused.
        is_hashable: whether its values may be in a set.
        is_key: whether its values may be keys of a dict.
    """

    hint: Any
    good: Values
    is_sure: bool = True
    is_refused: bool = False
    is_hashable: bool = True
    is_key: bool = True


class Shade(enum.Enum):
    LIGHT = "light"
    DARK = "dark"


class Grade(enum.IntEnum):
    LOW = -1
    HIGH = 7


class Word(str, enum.Enum):  # noqa: UP042  its members are texts
    YES = "yes"
    NO = ""


class Handle:
    """A class that JSON has no form for."""


BERLIN = ZoneInfo("Europe/Berlin")
#: The hour that comes twice.
FOLD = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)

zones: Any = st.sampled_from([None, UTC, timezone(timedelta(hours=-9, minutes=-30)), BERLIN])
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
integers = st.integers() | st.sampled_from([2**53 + 1, -(2**63), 2**64, 10**40, -(10**40)])
floats = st.floats(allow_nan=False, allow_infinity=False)
moments = st.datetimes(min_value=datetime(1950, 1, 1), timezones=zones).map(
    lambda moment: once(moment)
) | st.just(FOLD)
hours = st.times(timezones=zones.filter(lambda zone: zone is not BERLIN)).map(
    lambda hour: once(hour)
)
money = st.decimals(allow_nan=False, allow_infinity=False)
plain: Values = st.recursive(
    st.none() | st.booleans() | integers | floats | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
).filter(lambda value: not (isinstance(value, dict) and set(value) == {"__type__", "__value__"}))


def once(value: Any) -> Any:
    """Return a time without a zone as the first of a repeated hour: JSON can't tell the second."""
    return value if value.tzinfo else value.replace(fold=0)


#: What is refused, though it is of a type that is not.
LOST_TIMES = [
    datetime(2026, 10, 25, 2, 30, fold=1), time(2, 30, fold=1), time(2, 30, tzinfo=BERLIN),
]  # fmt: skip

LEAVES = [
    Kind(str, texts),
    Kind(int, integers),
    Kind(float, floats),
    Kind(Decimal, money),
    Kind(Decimal, st.decimals(), is_hashable=False),
    Kind(datetime, moments),
    Kind(date, st.dates()),
    Kind(time, hours),
    Kind(timedelta, st.timedeltas()),
    Kind(UUID, st.uuids()),
    Kind(bytes, st.binary(max_size=6)),
    Kind(Shade, st.sampled_from(Shade)),
    Kind(Grade, st.sampled_from(Grade)),
    Kind(Word, st.sampled_from(Word)),
    Kind(Literal["a", "b"], st.sampled_from(["a", "b"])),
    Kind(Literal[1, 2], st.sampled_from([1, 2])),
    Kind(bool, st.booleans(), is_key=False),
    Kind(None, st.none(), is_key=False),
    Kind(bytearray, st.builds(bytearray, st.binary(max_size=6)), is_hashable=False),
    Kind(Any, plain, is_hashable=False),
    Kind(object, plain, is_hashable=False),
    Kind(dict, st.dictionaries(texts, plain, max_size=2), is_hashable=False),
    Kind(list, st.lists(plain, max_size=2), is_hashable=False),
    *(
        Kind(hint, st.nothing(), is_sure=False, is_refused=True)
        for hint in (Handle, complex, range, msgspec.Raw, Iterator[int], Callable[[], int])
    ),
]


#: Tell classes apart.
numbers = itertools.count()


def made_of(kinds: Sequence[Kind], hint: Any, good: Values, **more: Any) -> Kind:
    """Return a type that is made of others."""
    return Kind(
        hint,
        good,
        is_sure=all(kind.is_sure for kind in kinds),
        is_refused=any(kind.is_refused for kind in kinds),
        **{"is_hashable": False, "is_key": False, **more},
    )


def list_of(kind: Kind) -> Kind:
    return made_of([kind], list[kind.hint], st.lists(kind.good, max_size=3))  # type: ignore[name-defined]


def sequence_of(kind: Kind) -> Kind:
    return made_of([kind], Sequence[kind.hint], st.lists(kind.good, max_size=3))  # type: ignore[name-defined]


def set_of(kind: Kind) -> Kind:
    return made_of([kind], set[kind.hint], st.sets(kind.good, max_size=3))  # type: ignore[name-defined]


def frozenset_of(kind: Kind) -> Kind:
    good = st.frozensets(kind.good, max_size=3)
    return made_of([kind], frozenset[kind.hint], good, is_hashable=True)  # type: ignore[name-defined]


def tuple_of(kind: Kind) -> Kind:
    good = st.lists(kind.good, max_size=3).map(tuple)
    return made_of([kind], tuple[kind.hint, ...], good, is_hashable=kind.is_hashable)  # type: ignore[name-defined]


def pair_of(one: Kind, other: Kind) -> Kind:
    good = st.tuples(one.good, other.good)
    is_hashable = one.is_hashable and other.is_hashable
    return made_of([one, other], tuple[one.hint, other.hint], good, is_hashable=is_hashable)  # type: ignore[name-defined]


def dict_of(key: Kind, value: Kind) -> Kind:
    good = st.dictionaries(key.good, value.good, max_size=3)
    kind = made_of([key, value], dict[key.hint, value.hint], good)  # type: ignore[name-defined]
    return kind if key.is_key else kind._replace(is_sure=False, is_refused=True)


def mapping_of(key: Kind, value: Kind) -> Kind:
    kind = dict_of(key, value)
    return kind._replace(hint=Mapping[key.hint, value.hint])  # type: ignore[name-defined]


def optional(kind: Kind) -> Kind:
    return made_of(
        [kind], kind.hint | None if kind.hint else None, st.none() | kind.good,
        is_hashable=kind.is_hashable,
    )  # fmt: skip


def union_of(one: Kind, other: Kind) -> Kind:
    kind = made_of([one, other], one.hint | other.hint, one.good | other.good)
    # Which types JSON can tell apart, msgspec says; what it takes for which, the values tell.
    return kind._replace(is_sure=False)


def struct_of(kinds: Sequence[Kind], options: Mapping[str, Any]) -> Kind:
    cls = msgspec.defstruct(
        f"Part{next(numbers)}", [(f"f{n}", k.hint) for n, k in enumerate(kinds)], **options
    )
    kind = _object_of(kinds, cls)
    return kind._replace(is_sure=False, is_refused=True) if "omit_defaults" in options else kind


def dataclass_of(kinds: Sequence[Kind], is_frozen: bool) -> Kind:
    fields = [(f"f{n}", kind.hint) for n, kind in enumerate(kinds)]
    return _object_of(
        kinds, dataclasses.make_dataclass(f"Record{next(numbers)}", fields, frozen=is_frozen)
    )


def named_tuple_of(kinds: Sequence[Kind]) -> Kind:
    cls = NamedTuple(f"Row{next(numbers)}", [(f"f{n}", kind.hint) for n, kind in enumerate(kinds)])  # type: ignore[misc]
    kind = _object_of(kinds, cls)
    return kind._replace(is_hashable=all(k.is_hashable for k in kinds))


def _object_of(kinds: Sequence[Kind], cls: Any) -> Kind:
    good = st.tuples(*(kind.good for kind in kinds)).map(lambda values: cls(*values))
    return made_of(kinds, cls, good)


def composed(kinds: st.SearchStrategy[Kind]) -> st.SearchStrategy[Kind]:
    """Return types that are made of others."""
    hashable = kinds.filter(lambda kind: kind.is_hashable and not kind.is_refused)
    several = st.lists(kinds, min_size=1, max_size=3)
    options = st.sampled_from(
        [{}, {"frozen": True}, {"array_like": True}, {"rename": "camel"}, {"omit_defaults": True},
         {"tag": "part"}, {"eq": False}, {"forbid_unknown_fields": True}]
    )  # fmt: skip
    unites = kinds.filter(lambda kind: isinstance(kind.hint, type))
    return st.one_of(
        st.builds(list_of, kinds),
        st.builds(sequence_of, kinds),
        st.builds(set_of, hashable),
        st.builds(frozenset_of, hashable),
        st.builds(tuple_of, kinds),
        st.builds(pair_of, kinds, kinds),
        st.builds(dict_of, hashable, kinds),
        st.builds(mapping_of, hashable, kinds),
        st.builds(optional, kinds.filter(lambda kind: kind.hint is not None)),
        st.builds(union_of, unites, unites),
        st.builds(struct_of, several, options),
        st.builds(dataclass_of, several, st.booleans()),
        st.builds(named_tuple_of, several),
    )


kinds = st.recursive(st.sampled_from(LEAVES), composed, max_leaves=6)

#: What is given to a field whatever that is declared with.
odd_values: Values = st.one_of(
    plain, st.floats(), money, moments, st.dates(), hours, st.timedeltas(), st.uuids(),
    st.binary(max_size=3), st.sampled_from([*Shade, *Grade, *Word]), st.just(Decimal("sNaN")),
    st.tuples(integers), st.sets(texts, max_size=2), st.dictionaries(integers, texts, max_size=2),
    st.just({"__type__": "uuid", "__value__": "?"}), st.lists(st.floats(), max_size=2),
    st.sampled_from(LOST_TIMES), st.builds(Handle), st.just("\ud800"), st.complex_numbers(),
    st.just(1 << 70),
)  # fmt: skip


# ------------------------------------------------------------ what is the same


def is_alike(one: Any, other: Any) -> bool:
    """Return whether two values are the same in all parts: in value and in type."""
    return bool(written(one) == written(other))


def written(value: Any) -> Any:
    """Return a value in words: all its types are in them, and the order of dicts."""
    kind = type(value).__qualname__
    if isinstance(value, (list, tuple)):
        return kind, [written(part) for part in value]
    if isinstance(value, dict):
        return kind, [(written(key), written(part)) for key, part in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted((written(part) for part in value), key=repr)
    fields = fields_of(value)
    if fields is not None:
        return kind, [(name, written(getattr(value, name))) for name in fields]
    if isinstance(value, (datetime, time)):
        # Of a zone, the offset is stored; which of two times of a repeated hour it is, that says.
        fold = value.fold if value.tzinfo is None else 0
        return kind, repr(value.replace(tzinfo=None, fold=fold)), value.utcoffset()
    return kind, repr(value)


def is_equal(given: Any, read: Any) -> bool:
    """Return whether what was read equals what was given, which may have been of another type."""
    try:
        return is_alike(given, read) or bool(given == read)
    except ArithmeticError:
        return False


def fields_of(value: Any) -> Sequence[str] | None:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    return None


# ------------------------------------------------------------ one class, and its values


@dataclasses.dataclass
class Classes:
    """What was made of some fields: an event, a command, an aggregate whose state they are."""

    kinds: Sequence[Kind]
    event: Any
    command: Any
    aggregate: Any


def made(some: Sequence[Kind]) -> Classes:
    """Make the classes with a field for each kind.

    Raises:
        RegistrationError: JSON can't hold one of them.
    """
    hints = {f"field{n}": kind.hint for n, kind in enumerate(some)}
    body = {"__annotations__": hints, "__module__": __name__}
    event_class = MessageMeta("Generated", (Event,), dict(body), name="values.generated")
    command = MessageMeta("GeneratedCommand", (Command,), dict(body), name="values.generated")

    def record(self: Any, one: Event) -> None:
        self.record(one)

    event_type: Any = event_class

    @applies(event_type)
    def apply(self: Any, one: Any) -> None:
        for name in hints:
            setattr(self, name, getattr(one, name))

    state = {**body, "apply": apply, "do": record}
    return Classes(some, event_class, command, type("GeneratedThing", (Aggregate,), state))


def check_class(some: Sequence[Kind], counts: Counter[str]) -> Classes | None:
    """Make classes of some kinds, if they are accepted, and check that they are, or are not."""
    classes, refused = None, ""
    try:
        classes = made(some)
    except RegistrationError as error:
        refused = str(error)
    if classes is None:
        assert not all(kind.is_sure for kind in some), refused
        assert "Generated" in refused
        assert "field" in refused
        counts["classes refused when made"] += 1
        return None
    assert not any(kind.is_refused for kind in some), [kind.hint for kind in some]
    counts["classes accepted"] += 1
    return classes


def check_values(
    classes: Classes, values: Sequence[Any], counts: Counter[str], *, is_good: bool
) -> None:
    """Record values, unless they are refused, and check that each way gives them back."""
    named = {f"field{n}": value for n, value in enumerate(values)}
    one, command = classes.event(**named), classes.command(**named)
    serializer = Serializer("values")
    thing = classes.aggregate("1")
    counts["values"] += len(values)
    refused = None
    try:
        thing.record(one)
    except UnwritableMessage as error:
        refused = str(error)
    if refused is not None:
        assert not is_good or _is_ambiguous(classes), refused
        assert thing.pending_events == ()
        for write in (serializer.encode, serializer.to_plain, _in_a_chain):
            for message in (one, command):
                _is_refused(write, message)
        counts["records refused"] += 1
        return
    counts["records accepted"] += 1
    reference = thing.pending_events[0].event
    for name, value in named.items():
        found = getattr(reference, name)
        same = is_alike if is_good and not _is_ambiguous(classes) else is_equal
        assert same(value, found), (name, value, found)
    for way, found in ways(classes, one, command, serializer, counts):
        for name in named:
            read, wanted = getattr(found, name), getattr(reference, name)
            assert is_alike(read, wanted), (way, name, wanted, read)
        counts["comparisons"] += len(named)
    check_results(classes, reference, counts)


def _is_ambiguous(classes: Classes) -> bool:
    # Of a union, a value may be read as of another of its types, and then is refused.
    return not all(kind.is_sure for kind in classes.kinds)


def _is_refused(write: Callable[[Any], Any], message: Any) -> None:
    try:
        write(message)
    except UnwritableMessage:
        return
    raise AssertionError(f"{write} accepted {message!r}, which record refused")


def _in_a_chain(message: Any) -> Any:
    return message.__json__()


def _json(plain_values: Any) -> Any:
    return kombu_json.loads(kombu_json.dumps(plain_values))


def ways(
    classes: Classes, one: Any, command: Any, serializer: Serializer, counts: Counter[str]
) -> Iterator[tuple[str, Any]]:
    """Yield what is read of an event, or of a command with the same fields, by each way."""
    for how in (None, Compression("gzip", 1)):
        packing = Serializer("values", compression=how)
        store = MemoryEventStore()
        states = MemoryStateCache(size=9, ttl_s=60)
        repository = Repository(store, packing, cache=AggregateCache(states))
        thing = classes.aggregate("1")
        thing.record(one)
        yield "applied", thing
        repository.save(thing)
        (stored,) = store.read_all()
        (recorded,) = recorded_events([stored], serializer)
        yield "store", recorded.event
        yield "subscription", unpack_events(_json(pack_event(stored)), serializer)[0].event
        # As the Redis store's script joins texts.
        data = kombu_json.loads(bytes(stored.event.data))
        yield "fan-out", serializer.convert_all("event", "values.generated", 1, data)[0]
        yield "loaded", Repository(store, serializer).get(classes.aggregate, "1")
        yield "cached", repository.get(classes.aggregate, "1")
        sent = _json(pack_command(command, packing))
        yield "command", unpack_command(sent, serializer)[0]
    yield "chain", serializer.from_plain("command", _json(_in_a_chain(command)))
    loaded = Repository(store, serializer).get(classes.aggregate, "1")
    try:
        state = capture(loaded)
    except (SnapshotError, RegistrationError):
        counts["states not kept"] += 1  # then the events are replayed
    else:
        counts["states kept"] += 1
        yield "snapshot", restore(classes.aggregate, "1", 1, state)
    outcome = given_history(classes.aggregate, "1", one).when(classes.aggregate.do, one).then(one)
    yield "given/when/then", outcome.aggregate
    yield "given/when/then, recorded", outcome.aggregate.pending_events[0].event


def check_results(classes: Classes, reference: Any, counts: Counter[str]) -> None:
    """Check that a handler that returns a field's value gives it to whoever asks, or fails."""
    for n, kind in enumerate(classes.kinds):
        value = getattr(reference, f"field{n}")

        def handler() -> None: ...

        handler.__annotations__["return"] = kind.hint
        returned = Returned(handler)
        try:
            text = returned.write(value, of="values.generated")
        except UnwritableMessage:
            assert not kind.is_sure, (kind.hint, value)
            counts["results refused"] += 1
            continue
        assert is_alike(returned.read(text), value), (kind.hint, value)
        assert is_alike(returned.convert(_json(msgspec.json.decode(text))), value)
        counts["results"] += 1


def check(data: st.DataObject, counts: Counter[str]) -> None:
    """Draw a class and values for it, and check all of it."""
    some = data.draw(st.lists(kinds, min_size=1, max_size=3), label="kinds")
    assume(sum(kind.is_refused for kind in some) <= 1)
    counts["classes"] += 1
    classes = check_class(some, counts)
    event("class accepted" if classes else "class refused")
    if classes is None:
        return
    for _ in range(3):
        good = [data.draw(kind.good, label="good") for kind in some]
        check_values(classes, good, counts, is_good=True)
        odd = list(good)
        odd[data.draw(st.integers(0, len(odd) - 1))] = data.draw(odd_values, label="odd")
        before = counts["records refused"]
        check_values(classes, odd, counts, is_good=False)
        event("odd value refused" if counts["records refused"] > before else "odd value kept")


def run(examples: int) -> Counter[str]:
    """Check so many classes; returns what became of them."""
    counts: Counter[str] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def checked(data: st.DataObject) -> None:
        check(data, counts)

    checked()
    return counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the long form, and print what it saw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--examples", type=int, default=2000)
    options = parser.parse_args(arguments)
    began = clock.monotonic()
    counts = run(options.examples)
    lines = [f"{name:28} {count:10,}" for name, count in sorted(counts.items())]
    lines.append(f"{'seconds':28} {clock.monotonic() - began:10.0f}")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
