"""The capabilities of a store in addition to its port, declared in one value.

    class MyStore:
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(transactions=self, histories=self)

Each part is the object that does it, typed by its port, so a wrapper forwards the whole value:

    class Wrapper:
        @property
        def capabilities(self) -> Capabilities:
            return capabilities_of(self.store)

Calls of a part then bypass the wrapper and go to the inner store. If a wrapper implements a part
itself, it replaces that part: `replace(capabilities_of(self.store), histories=self)`, with
`replace` of `dataclasses`.

A store that declares nothing has the capabilities whose port's methods it has. This module alone
looks them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, TypeVar

from ..errors import InvalidSetting
from .ports import (
    EnclosingStore,
    EventStore,
    HistoryStore,
    SnapshotsBesideEvents,
    SnapshotStore,
    SnapshottingStore,
    Subscriptions,
    TransactionalStore,
)
from .relay_ports import RelayedStore, ReplicatedStore, SqlTablesStore

C = TypeVar("C", "Capabilities", "SnapshotCapabilities")

_NAME: Final = "capabilities"


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """The abilities of an event store in addition to the port EventStore.

    Attributes:
        subscriptions: registers the subscribers to whom each append delivers; None if an append
            delivers to nobody.
        relayed: has the outbox from which a relay delivers; None if there is no relay.
        delivers: whether the store delivers events to their subscribers by its own means.
        transactions: commits the application's own rows together with the events.
        enclosing: reports whether a transaction is open in this thread, and whether handlers are
            called in one.
        snapshots: keeps snapshots where the events are.
        histories: reads only the columns of a stream that a replay needs.
        replica: may read from a replica.
        tables: has tables in a SQL database.
        checks_versions: whether an append may have streams without events, of which only the
            expected version is checked; see `EventStore.append`.
        is_in_process: whether the events are in this process only, so that locks may be, too.
        where: names the place of the events in messages, without credentials; if empty, messages
            name the store's class.
    """

    subscriptions: Subscriptions | None = None
    relayed: RelayedStore | None = None
    delivers: bool = False
    transactions: TransactionalStore | None = None
    enclosing: EnclosingStore | None = None
    snapshots: SnapshottingStore | None = None
    histories: HistoryStore | None = None
    replica: ReplicatedStore | None = None
    tables: SqlTablesStore | None = None
    checks_versions: bool = False
    is_in_process: bool = False
    where: str = ""

    @property
    def reaches_subscribers(self) -> bool:
        """Whether what is committed reaches its subscribers, by whatever means."""
        return self.delivers or self.subscriptions is not None or self.relayed is not None


@dataclass(frozen=True, kw_only=True)
class SnapshotCapabilities:
    """The abilities of a snapshot store in addition to the port SnapshotStore.

    Attributes:
        with_newer: reads a snapshot and the events after it in one step.
    """

    with_newer: SnapshotsBesideEvents | None = None


def capabilities_of(store: EventStore) -> Capabilities:
    """Return an event store's declared capabilities; if it declares none, those its methods show.

    Raises:
        InvalidSetting: the declared value is not a Capabilities.
    """
    return _declared(store, Capabilities, setting="store") or _undeclared(store)


def capabilities_of_snapshots(store: SnapshotStore) -> SnapshotCapabilities:
    """Return a snapshot store's declared capabilities; if it declares none, those its methods show.

    Raises:
        InvalidSetting: the declared value is not a SnapshotCapabilities.
    """
    declared = _declared(store, SnapshotCapabilities, setting="snapshots")
    if declared is not None:
        return declared
    return SnapshotCapabilities(with_newer=_if_has(store, "find_with_newer"))


def place_of(store: EventStore) -> str:
    """Return the name of an event store's place, for messages."""
    return capabilities_of(store).where or type(store).__name__


def check_capabilities(store: EventStore) -> None:
    """Check an event store: it, and each part that it declares, must have the methods of its port.

    Raises:
        InvalidSetting: it or a part lacks a method; the text names both.
    """
    _check_port(store, _STORE_METHODS, "an event store", setting="store")
    _check_parts(store, capabilities_of(store), _METHODS, "event store", setting="store")


def check_snapshot_capabilities(store: SnapshotStore) -> None:
    """Check a snapshot store, as `check_capabilities` checks an event store.

    Raises:
        InvalidSetting: it or a part lacks a method; the text names both.
    """
    _check_port(store, _SNAPSHOT_METHODS, "a snapshot store", setting="snapshots")
    declared = capabilities_of_snapshots(store)
    parts = {"with_newer": ("find_with_newer",)}
    _check_parts(store, declared, parts, "snapshot store", setting="snapshots")


def _check_port(store: object, port: tuple[str, ...], what: str, *, setting: str) -> None:
    missing = _missing(store, port)
    if missing:
        raise InvalidSetting(
            f"CQRS(app, {setting}=…) was given {store!r:.200}, which has no {', '.join(missing)};"
            f" expected {what}: an object that has {', '.join(port)}",
            setting=setting,
            accepted=", ".join(port),
        )


def _check_parts(
    store: object,
    declared: Capabilities | SnapshotCapabilities,
    ports: Mapping[str, tuple[str, ...]],
    what: str,
    *,
    setting: str,
) -> None:
    for name, port in ports.items():
        part = vars(declared)[name]
        missing = _missing(part, port)
        if part is not None and missing:
            raise InvalidSetting(
                f"the {what} {type(store).__qualname__} declares {name} ="
                f" {type(part).__qualname__}, which has no {', '.join(missing)}; expected an object"
                f" that has {', '.join(port)}",
                setting=setting,
                accepted=", ".join(port),
            )


def _missing(part: object, port: tuple[str, ...]) -> list[str]:
    return [name for name in port if _if_has(part, name) is None]


#: The methods that every event store has.
_STORE_METHODS: Final = ("append", "read_stream", "read_all", "find_command")

#: The methods that every snapshot store has.
_SNAPSHOT_METHODS: Final = ("find", "put", "remove", "streams")

#: The methods of each capability's port; a store that declares nothing is recognised by them.
_METHODS: Final[dict[str, tuple[str, ...]]] = {
    "subscriptions": ("register", "unregister"),
    "relayed": ("outbox", "leadership"),
    "transactions": ("begin",),
    "enclosing": ("begin", "encloses_handlers", "is_in_transaction"),
    "snapshots": ("snapshots",),
    "histories": ("read_history",),
    "replica": ("read_from_primary", "check_replica"),
    "tables": ("engine", "outbox", "forget_expired_commands"),
}


def _declared(store: object, kind: type[C], *, setting: str) -> C | None:
    """Return what a store declares, directly or by a wrapper's `__getattr__`; None if nothing."""
    try:
        declared = attrgetter(_NAME)(store)
    except AttributeError as error:
        if error.name != _NAME:
            raise  # the declaration itself failed
        return None
    if not isinstance(declared, kind):
        raise InvalidSetting(
            f"CQRS(app, {setting}=…) was given a {type(store).__qualname__} whose {_NAME} are"
            f" {declared!r}; expected a {kind.__name__} of cqrs_celery.store.{_NAME}",
            setting=setting,
            accepted=kind.__name__,
        )
    return declared


def _undeclared(store: EventStore) -> Capabilities:
    """Return the capabilities of a store that declares none."""
    parts = {name: _if_has(store, *methods) for name, methods in _METHODS.items()}
    if parts["relayed"] is not None and parts["relayed"].outbox is None:
        parts["relayed"] = None
    named = _if_has(store, "where")
    delivering = _if_has(store, "delivers")
    return Capabilities(
        **parts,
        delivers=delivering is not None and bool(delivering.delivers),
        where="" if named is None else str(named.where or ""),
    )


def _if_has(store: Any, *names: str) -> Any:
    """Return a store if it has attributes of these names, also by `__getattr__`; else None."""
    try:
        attrgetter(*names)(store)
    except AttributeError:
        return None
    return store
