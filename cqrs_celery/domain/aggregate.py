"""The aggregate: decides, records what it decided as events, and is rebuilt from them.

    class InventoryItem(Aggregate):
        count: int = 0

        def check_in(self, count: int) -> None:
            if count <= 0:
                raise ValueError(f"check in at least 1 item, not {count}")
            self.record(ItemsCheckedIn(count=count))

        @applies(ItemsCheckedIn)
        def _checked_in(self, event: ItemsCheckedIn) -> None:
            self.count += event.count

Its state is its attributes. What the session needs to know about it besides them is one attribute,
`__ledger__`; `lifecycle` has what the session does with it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, cast

from ..errors import (
    AggregateError,
    AggregateNotConstructible,
    MissingAggregateId,
    RegistrationError,
    ReservedFieldName,
    SessionError,
    UnhandledEvent,
)
from ..messages.class_options import unknown_argument
from ..messages.codec import codec_of
from ..messages.message import Event
from ..messages.metadata import new_id, utc_now
from ..messages.registry import where
from ..mutability import annotated_names, is_mutable, may_be_mutable
from ..whole_numbers import is_whole
from .applies import applier_of, appliers_of
from .recording import note_recording
from .snapshot_policy import AnyOf, EveryEvents, SnapshotPolicy
from .type_names import claim

_RESERVED: Final = ("id", "version", "pending_events", "record")
_ARGUMENTS: Final = (
    "name", "alias_of", "strict", "snapshot_every", "snapshot_policy", "snapshot_version",
)  # fmt: skip
_TYPE_NAME: Final = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True, slots=True)
class PendingEvent:
    """An event that is recorded, but not yet committed: the bytes that will be stored.

    Attributes:
        type: the event's class.
        data: its fields as a JSON object, as they were when it was recorded.
        event_id: unique; it keeps it in the store.
        timestamp: when it was recorded, UTC.
    """

    type: type[Event]
    data: bytes
    event_id: str
    timestamp: datetime

    @property
    def event(self) -> Event:
        """The typed event, as it will be read: a copy of the reader's own."""
        event: Event = codec_of(self.type).read(self.data)
        return event


@dataclass(slots=True)
class Ledger:
    """An aggregate's id, its committed version, and what it has recorded since.

    It also holds whether its session has ended, so that nobody would write what it records; for
    policies of snapshots: the version and time of the newest one that fits, and the seconds that
    loading took; and, for the cache, the state that its events alone have made, with its version.
    `known` has the version and id of the event that it was loaded at, and of the last one of each
    commit since: if its stream has all of them, its state is the stream's. It is empty if that
    can't be told.
    """

    id: str
    version: int = 0
    pending: list[PendingEvent] = field(default_factory=list)
    applying: Event | None = None
    snapshot_version: int = 0
    snapshot_taken_at: datetime | None = None
    load_s: float = 0.0
    is_detached: bool = False
    made: bytes | None = None
    made_version: int = 0
    known: list[tuple[int, str]] = field(default_factory=list)


class _NoLedger:
    """What stands for the ledger of an aggregate whose `__init__` has made none."""

    def __get__(self, aggregate: Aggregate | None, cls: type[Aggregate]) -> Any:
        if aggregate is None:
            return self
        raise AggregateNotConstructible(
            f"{where(cls)} was used before it had an id: expected its __init__ to call"
            " super().__init__(id) first",
            aggregate_type=cls.__aggregate_type__,
        )


class Aggregate:
    """An object with an identity, which changes only through the events that it records.

    It is built from its id alone; a class with an `__init__` of its own passes the id on. Mutable
    class attributes, such as `lines: list[Line] = []` or `place: Place = Place()`, are defaults:
    each instance has its own copy. Upper-case ones are constants and stay shared.

    Class arguments:
        name: its type, as it is stored and as streams are named; the class's name by default. No
            two classes of a process have one type.
        alias_of: another class, whose type and streams it shares.
        strict: True to refuse events that no method applies; a subclass inherits it.
        snapshot_every: take a snapshot when so many events have come since the last one.
        snapshot_policy: another rule for when; see `cqrs_celery.domain.snapshot_policy`.
        snapshot_version: of what the snapshots hold; count it up when the `@applies` methods make
            something else of the same events. One of another version is not used. A subclass
            inherits the three.
    """

    __aggregate_type__: ClassVar[str] = "Aggregate"
    __strict__: ClassVar[bool] = False
    __appliers__: ClassVar[Mapping[type[Event], str]] = {}
    __mutable_defaults__: ClassVar[Mapping[str, Any]] = {}
    __snapshot_policy__: ClassVar[SnapshotPolicy | None] = None
    __snapshot_version__: ClassVar[int] = 1

    #: An instance's own, which its constructor makes.
    __ledger__: Ledger = cast(Ledger, _NoLedger())

    def __init_subclass__(
        cls,
        *,
        name: str | None = None,
        alias_of: type[Aggregate] | None = None,
        strict: bool | None = None,
        snapshot_every: int | None = None,
        snapshot_policy: SnapshotPolicy | None = None,
        snapshot_version: int | None = None,
        **options: Any,
    ) -> None:
        try:
            super().__init_subclass__(**options)
        except TypeError as error:
            if not options:
                raise
            raise unknown_argument(where(cls), next(iter(options)), _ARGUMENTS) from error
        for reserved in _RESERVED:
            if getattr(cls, reserved) is not getattr(Aggregate, reserved):
                raise ReservedFieldName(
                    f"{where(cls)} has {reserved!r}, a name that Aggregate keeps for itself"
                    f" ({', '.join(_RESERVED)}). Rename it.",
                    field=reserved,
                )
        if name is None:
            name = getattr(alias_of, "__aggregate_type__", cls.__name__)
        cls.__aggregate_type__ = name
        if not _TYPE_NAME.fullmatch(cls.__aggregate_type__):
            raise RegistrationError(
                f"{where(cls)} has the name {cls.__aggregate_type__!r}; expected letters, digits,"
                f" _, . and -: class {cls.__name__}(Aggregate, name='…')"
            )
        if strict is not None:
            cls.__strict__ = strict
        policies: list[SnapshotPolicy] = [] if snapshot_policy is None else [snapshot_policy]
        if snapshot_every is not None:
            _check_number(cls, "snapshot_every", snapshot_every)
            policies.append(EveryEvents(snapshot_every))
        if policies:
            cls.__snapshot_policy__ = policies[0] if len(policies) == 1 else AnyOf(tuple(policies))
        if snapshot_version is not None:
            _check_number(cls, "snapshot_version", snapshot_version)
            cls.__snapshot_version__ = snapshot_version
        cls.__appliers__ = appliers_of(cls)
        cls.__mutable_defaults__ = _mutable_defaults(cls)
        claim(cls, name, alias_of)

    def __init__(self, id: str) -> None:
        if not issubclass(type(id), str):
            raise TypeError(
                f"{self.__aggregate_type__} was built with the id {id!r}; expected text, as str(id)"
            )
        self.__ledger__ = Ledger(id)
        for name, default in self.__mutable_defaults__.items():
            setattr(self, name, copy.deepcopy(default))

    @property
    def id(self) -> str:
        """Its identity among the aggregates of its type."""
        return self.__ledger__.id

    @property
    def version(self) -> int:
        """The number of its committed events; it moves only after a save has succeeded.

        In an `@applies` method, it is the version of the event before the one that is applied, when
        that is recorded as when it is replayed.
        """
        ledger = self.__ledger__
        if ledger.applying is None:
            return ledger.version
        return ledger.version + len(ledger.pending)

    @property
    def pending_events(self) -> tuple[PendingEvent, ...]:
        """What it has recorded since it was loaded or saved, oldest first.

        In an `@applies` method, nothing, as when events are replayed.
        """
        ledger = self.__ledger__
        return tuple(ledger.pending) if ledger.applying is None else ()

    def record(self, event: Event) -> None:
        """Apply an event at once, and keep it until the session commits it.

        It is written as JSON here and now. The `@applies` method gets what will be read of it, a
        copy: what is done to either afterwards does not change what is stored.

        Args:
            event: what has been decided; anything that could refuse it comes before.

        Raises:
            UnwritableMessage: a field holds a value that would not be read as it is.
            SessionError: its session has committed, or ended: nobody would write the event.
            MissingAggregateId: the aggregate has no id.
            UnhandledEvent: the class is strict and has no method for the event.
            AggregateError: an `@applies` method recorded it, which would repeat on every load.
        """
        ledger = self.__ledger__
        if not ledger.id:
            raise MissingAggregateId(
                f"{type(self).__qualname__} recorded {type(event).__qualname__}, and neither has an"
                f" id; expected the aggregate to be made with one: {type(self).__qualname__}(id)",
                aggregate_type=self.__aggregate_type__,
                event_type=type(event).__qualname__,
            )
        if ledger.is_detached:
            raise SessionError(
                f"{self!r} recorded {type(event).__qualname__} after its session had committed or"
                " ended, so nobody would write it. Load the aggregate again in a session that is"
                f" open, session.get({type(self).__qualname__}, {ledger.id!r}), or add it there:"
                " session.add(…)."
            )
        if ledger.applying is not None:
            raise AggregateError(
                f"{self!r} recorded {type(event).__qualname__} while it applied"
                f" {type(ledger.applying).__qualname__}: that would happen again on every load."
                " Record events where they are decided; an @applies method only sets attributes."
            )
        cls: type[Any] = type(event)
        if not issubclass(cls, Event) or cls is Event:
            raise AggregateError(
                f"{self!r} recorded {event!r}; expected an event, of a class below Event"
            )
        data, copied = codec_of(cls).write(event)
        apply(self, copied)
        if not ledger.pending:
            note_recording(self)
        ledger.pending.append(PendingEvent(cls, data, new_id(), utc_now()))

    def __repr__(self) -> str:
        ledger = self.__ledger__
        return (
            f"<{self.__aggregate_type__}-{ledger.id} at version {ledger.version},"
            f" {len(ledger.pending)} pending>"
        )


def apply(aggregate: Aggregate, event: Event) -> None:
    """Change an aggregate's attributes through the method that applies the event, if it has one.

    Raises:
        UnhandledEvent: it has none, and its class is strict.
    """
    appliers = aggregate.__appliers__
    name = appliers.get(type(event)) or applier_of(appliers, type(event))
    if name is None:
        if aggregate.__strict__:
            raise UnhandledEvent(
                f"{type(aggregate).__qualname__} is strict and has no method for"
                f" {type(event).__qualname__}; add one with @applies({type(event).__qualname__})",
                aggregate_type=aggregate.__aggregate_type__,
                event_type=type(event).__qualname__,
            )
        return
    ledger = aggregate.__ledger__
    ledger.applying = event
    try:
        getattr(aggregate, name)(event)
    finally:
        ledger.applying = None


def _check_number(cls: type[Any], name: str, number: Any) -> None:
    if not is_whole(number, at_least=1) or number >= 2**31:
        raise RegistrationError(
            f"{where(cls)} has {name} = {number!r}; expected a whole number from 1"
        )


def _mutable_defaults(cls: type[Any]) -> dict[str, Any]:
    """Return the class attributes of which each instance needs a copy of its own.

    Raises:
        RegistrationError: one can't be copied.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        annotated = annotated_names(base, with_class_variables=False)
        for name, value in vars(base).items():
            found.pop(name, None)
            if name.startswith("__") or name.isupper() or hasattr(value, "__get__"):
                continue
            # What an annotation declares is state, whatever class it is of.
            if is_mutable(value) or (name in annotated and may_be_mutable(value)):
                found[name] = _copyable(cls, name, value)
    return found


def _copyable(cls: type[Any], name: str, value: Any) -> Any:
    try:
        copy.deepcopy(value)
    except Exception as error:
        raise RegistrationError(
            f"{where(cls)} has the default {name} = {value!r}, which all its instances would share,"
            f" and which can't be copied: {error}. Set it in __init__, or write its name in upper"
            " case if it is a constant."
        ) from error
    return value
