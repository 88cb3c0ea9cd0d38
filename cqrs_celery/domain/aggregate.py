"""The aggregate: it makes decisions, records them as events, and is rebuilt from those events.

    class InventoryItem(Aggregate):
        count: int = 0

        def check_in(self, count: int) -> None:
            if count <= 0:
                raise ValueError(f"check in at least 1 item, not {count}")
            self.record(ItemsCheckedIn(count=count))

        @applies(ItemsCheckedIn)
        def _checked_in(self, event: ItemsCheckedIn) -> None:
            self.count += event.count

Its state is its attributes. One more attribute, `__ledger__`, holds what the session needs to know
about it. The module `lifecycle` has the functions that the session uses.
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
    """An event that is recorded but not yet committed, as the bytes that will be stored.

    Attributes:
        type: the event's class.
        data: the event's fields as a JSON object, as they were when it was recorded.
        event_id: the event's unique id, which it keeps in the store.
        timestamp: when it was recorded, UTC.
    """

    type: type[Event]
    data: bytes
    event_id: str
    timestamp: datetime

    @property
    def event(self) -> Event:
        """The typed event, as it will be read; each access returns a new copy."""
        event: Event = codec_of(self.type).read(self.data)
        return event


@dataclass(slots=True)
class Ledger:
    """An aggregate's id, its committed version, and the events that it has recorded since.

    Attributes:
        id: the aggregate's id.
        version: its committed version.
        pending: the events that it has recorded since, oldest first.
        applying: the event that an `@applies` method is applying now; None otherwise.
        snapshot_version: the version of the newest snapshot that fits its class; 0 if there is
            none.
        snapshot_taken_at: when that snapshot was taken; None if there is none.
        load_s: seconds that loading took.
        is_detached: whether its session has ended, so that events recorded now would be lost.
        made: for the cache, a state that only its events have made; None if there is none.
        made_version: the version of that state.
        known: the version and id of the event that it was loaded at, and of the last event of each
            commit since. If its stream has all of them, its state is the stream's. It is empty if
            this is not known.
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
    """A stand-in for the ledger of an aggregate whose `__init__` has not created one."""

    def __get__(self, aggregate: Aggregate | None, cls: type[Aggregate]) -> Any:
        if aggregate is None:
            return self
        raise AggregateNotConstructible(
            f"{where(cls)} was used before it had an id: expected its __init__ to call"
            " super().__init__(id) first",
            aggregate_type=cls.__aggregate_type__,
        )


class Aggregate:
    """An object with an identity that changes only through the events that it records.

    It is built from its id only; a class with its own `__init__` passes the id on. Mutable class
    attributes, such as `lines: list[Line] = []` or `place: Place = Place()`, are defaults: each
    instance has its own copy. Attributes in upper case are constants and stay shared.

    Class arguments:
        name: the aggregate type, which is stored and names the streams; by default the class's
            name. No two classes of a process may have the same type.
        alias_of: another class, whose type and streams this class shares.
        strict: True to refuse events that no method applies; a subclass inherits it.
        snapshot_every: the number of events since the last snapshot after which one is taken.
        snapshot_policy: another rule for taking snapshots; see
            `cqrs_celery.domain.snapshot_policy`.
        snapshot_version: the version of the state in snapshots. Increase it when the `@applies`
            methods derive another state from the same events. A snapshot of another version is not
            used. A subclass inherits all three.
    """

    __aggregate_type__: ClassVar[str] = "Aggregate"
    __strict__: ClassVar[bool] = False
    __appliers__: ClassVar[Mapping[type[Event], str]] = {}
    __mutable_defaults__: ClassVar[Mapping[str, Any]] = {}
    __snapshot_policy__: ClassVar[SnapshotPolicy | None] = None
    __snapshot_version__: ClassVar[int] = 1

    #: The instance's ledger, which its constructor creates.
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
                    f"{where(cls)} has {reserved!r}, a name that Aggregate reserves"
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
        """The aggregate's id, unique within its type."""
        return self.__ledger__.id

    @property
    def version(self) -> int:
        """The number of committed events; it increases only after a save has succeeded.

        In an `@applies` method, it is the version before the applied event, both when the event is
        recorded and when it is replayed.
        """
        ledger = self.__ledger__
        if ledger.applying is None:
            return ledger.version
        return ledger.version + len(ledger.pending)

    @property
    def pending_events(self) -> tuple[PendingEvent, ...]:
        """The events that it has recorded since it was loaded or saved, oldest first.

        In an `@applies` method, it is empty, both when the event is recorded and when it is
        replayed.
        """
        ledger = self.__ledger__
        return tuple(ledger.pending) if ledger.applying is None else ()

    def record(self, event: Event) -> None:
        """Apply an event at once, and keep it until the session commits it.

        The event is written as JSON at once. The `@applies` method gets a copy, as it will be read
        from that JSON. Later changes to either object do not change what is stored.

        Args:
            event: the decision; check everything that could refuse it before recording it.

        Raises:
            UnwritableMessage: a field holds a value that would not come back unchanged.
            SessionError: the aggregate's session has committed or ended; the event would be lost.
            MissingAggregateId: the aggregate has no id.
            UnhandledEvent: the class is strict and has no method for the event.
            AggregateError: an `@applies` method recorded it, which would repeat on every load; or
                it is not an event.
        """
        ledger = self.__ledger__
        if not ledger.id:
            raise MissingAggregateId(
                f"{type(self).__qualname__} recorded {type(event).__qualname__}, but the aggregate"
                " has no id; expected it to be created with one:"
                f" {type(self).__qualname__}(id)",
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
                " Record events in a method that decides; an @applies method only sets attributes."
            )
        cls: type[Any] = type(event)
        if not issubclass(cls, Event) or cls is Event:
            raise AggregateError(
                f"{self!r} recorded {event!r}; expected an instance of a subclass of Event"
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
    """Call the aggregate's method that applies the event, if there is one.

    Raises:
        UnhandledEvent: there is no such method, and the class is strict.
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
    """Return the class attributes that each instance needs its own copy of.

    Raises:
        RegistrationError: an attribute can't be copied.
    """
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        annotated = annotated_names(base, with_class_variables=False)
        for name, value in vars(base).items():
            found.pop(name, None)
            if name.startswith("__") or name.isupper() or hasattr(value, "__get__"):
                continue
            # An annotated attribute is state, whatever its class.
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
