"""Load aggregates from a store and save them to it.

A save is one append, whatever the number of aggregates. Nothing in an aggregate changes unless it
succeeded, so a failed save may be repeated: the events keep their ids, and the store knows them.

A load replays the events behind what is cached, else those behind a snapshot, else all of them. The
result is the same: a cached state or a snapshot that the events don't follow is thrown away. So is
one of events that the stream does not have, as after the restoring of a backup, or in another
database: each carries the version and id of its last event, with which the same read compares.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from ..domain.aggregate import Aggregate, PendingEvent
from ..domain.lifecycle import build, mark_saved
from ..errors import (
    AggregateNotFound,
    DuplicateInstance,
    MessageError,
    SessionError,
    StoreError,
    SubscriptionFailed,
)
from ..messages.metadata import NO_METADATA, Metadata
from ..messages.serializer import Serializer
from ..store.capabilities import capabilities_of
from ..store.events import (
    CommandRecord,
    Committed,
    Lease,
    NewEvent,
    StreamAppend,
)
from ..store.ports import EventStore, StoreTransaction
from ..store.reading import Reads
from ..store.refusals import check_text, stale_version
from ..store.stream import StreamName
from .cache import AggregateCache
from .keeping import Keeper
from .replaying import Replayer
from .snapshots import Snapshots

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)


class Repository:
    """The place where aggregates come from and go to.

    Args:
        store: keeps the events.
        serializer: turns events into what is stored, and names the application.
        snapshots: of aggregates that have them; None for none.
        cache: of aggregates; None for none.
        check: called with the events' classes before each append; what it raises refuses that.
    """

    def __init__(
        self,
        store: EventStore,
        serializer: Serializer,
        *,
        snapshots: Snapshots | None = None,
        cache: AggregateCache | None = None,
        check: Callable[[Iterable[type[Any]]], None] | None = None,
    ) -> None:
        self._store = store
        capabilities = capabilities_of(store)
        self._replica = capabilities.replica
        self._transactions = capabilities.transactions
        self._enclosing = capabilities.enclosing
        self._check = check
        self._serializer = serializer
        self._cache = cache
        self.snapshots = snapshots
        self._replayer = Replayer(store, serializer)
        self._keeper = Keeper(self._replayer, snapshots, cache)

    def find(self, cls: type[A], id: str) -> A | None:
        """Return an aggregate as its events have left it, or None if it has none.

        Raises:
            AggregateNotConstructible: the class can't be built from an id alone.
            EventOutOfOrder: its history has a gap or a repeat.
            ForeignEvent: its history holds another aggregate's event.
            UnhandledEvent: the class is strict and has no method for an event.
            MessageError: an event can't be read; a note says where it is stored.
            StoreUnavailable: the store's server does not answer.
        """
        stream = self.stream_of(cls, id)
        if self._cache is None:
            return self.rebuild(cls, id)
        aggregate = self._brought_forward(cls, stream, self._cache)
        if aggregate is None:
            aggregate = self.rebuild(cls, id)
            if aggregate is not None and self._may_keep():
                self._cache.put(aggregate, stream)
        return aggregate

    def rebuild(self, cls: type[A], id: str, *, from_events_alone: bool = False) -> A | None:
        """Return an aggregate as `find` does, without the cache.

        Args:
            cls: its class.
            id: its id.
            from_events_alone: without its snapshot, too.

        Raises:
            CQRSError: as `find` does.
        """
        started_s = time.perf_counter()
        stream = self.stream_of(cls, id)
        aggregate, newer = None, None
        if self.snapshots is not None and not from_events_alone:
            restored = self.snapshots.restore(cls, stream)
            aggregate, newer = restored.aggregate, restored.newer
            if aggregate is not None:
                try:
                    self._replayer.replay_newer(aggregate, stream, newer)
                except (StoreError, MessageError):
                    raise
                except Exception as error:  # noqa: BLE001  from the start, it comes again or not
                    self.snapshots.forget(stream, error)
                    aggregate, newer = None, None
        if aggregate is None:
            aggregate = build(cls, id)
            self._replayer.replay_newer(aggregate, stream, newer)
        aggregate.__ledger__.load_s = time.perf_counter() - started_s
        return aggregate if aggregate.version else None

    def _brought_forward(self, cls: type[A], stream: StreamName, cache: AggregateCache) -> A | None:
        """Return a cached aggregate with the events that have come since; None without one."""
        started_s = time.perf_counter()
        aggregate = cache.get(cls, stream)
        if aggregate is None:
            return None
        version = aggregate.version
        try:
            self._replayer.replay_newer(aggregate, stream)
        except (StoreError, MessageError):
            raise
        except Exception as error:  # noqa: BLE001  from the start, it comes again or not
            logger.warning(
                "cached state of %s does not go with its events, evicted: %s: %s",
                stream,
                type(error).__name__,
                error,
                extra={"stream": str(stream), "why": f"{type(error).__name__}: {error}"},
            )
            cache.remove(stream)
            return None
        aggregate.__ledger__.load_s = time.perf_counter() - started_s
        if aggregate.version != version and self._may_keep():
            cache.put(aggregate, stream)
        return aggregate

    def get(self, cls: type[A], id: str) -> A:
        """Return an aggregate as its events have left it.

        One that a replica does not have is looked for in the primary.

        Raises:
            AggregateNotFound: it has no events.
            CQRSError: as `find` does.
        """
        with Reads() as reads:
            aggregate = self.find(cls, id)
        if aggregate is None and reads.used_replica:
            # A replica that lags does not have it yet.
            with Reads(from_primary=True):
                aggregate = self.find(cls, id)
        if aggregate is None:
            raise AggregateNotFound(
                f"{cls.__aggregate_type__}-{id} has no events in the store of application"
                f" {self._serializer.application!r}. Check the id, or use find, which gives None.",
                aggregate_type=cls.__aggregate_type__,
                aggregate_id=id,
            )
        return aggregate

    def save(
        self,
        *aggregates: Aggregate,
        metadata: Metadata = NO_METADATA,
        command: CommandRecord | None = None,
        lease: Lease | None = None,
        expected_version: int | None = None,
        transaction: StoreTransaction | None = None,
    ) -> Committed | None:
        """Append what aggregates have pending, all or none; then they have nothing pending.

        Args:
            aggregates: those with nothing pending are passed over.
            metadata: of all their events.
            command: recorded with the events, refused if it was recorded before.
            lease: the worker's hold on its message; refused if it was lost.
            expected_version: at which they must be; None for wherever they were loaded.
            transaction: is committed with them, and ended.

        Returns:
            Where the commit ended; None if nothing was pending, and no event was written.

        Raises:
            ConcurrencyError: another writer committed first; nothing was written.
            StaleVersion: one is not at `expected_version`; nothing was written.
            DuplicateInstance: one is there in two instances; nothing was written.
            SubscriptionFailed: everything was written, and a subscription in this process failed.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            UnwritableMessage: an event is too large; nothing was written.
            StoreUnavailable: the server does not answer. The save may be repeated.
        """
        changed = self._changed(aggregates, expected_version)
        if not changed:
            if transaction is not None:
                transaction.commit(command=command, lease=lease)
            return None
        appends = self._appends(changed, metadata)
        failed: SubscriptionFailed | None = None
        try:
            committed = (transaction or self._store).append(appends, command=command, lease=lease)
        except SubscriptionFailed as error:
            failed, committed = error, _committed(error, appends)
        except BaseException as error:
            self._keeper.forget(changed, error)
            raise
        self._mark_saved(changed, committed)
        if failed is not None:
            raise failed
        return committed

    def _mark_saved(self, changed: Mapping[StreamName, Aggregate], committed: Committed) -> None:
        is_kept = self._may_keep()
        for (stream, aggregate), version in zip(changed.items(), committed.versions, strict=True):
            since, recorded = aggregate.version, aggregate.pending_events
            mark_saved(aggregate, version)
            if is_kept:
                self._keeper.keep(aggregate, stream, recorded, since=since)

    def _changed(
        self, aggregates: Iterable[Aggregate], expected_version: int | None
    ) -> dict[StreamName, Aggregate]:
        """Return the aggregates that have something pending, by their streams.

        Raises:
            StaleVersion: one is not at `expected_version`.
            DuplicateInstance: one is there in two instances.
            InvalidSetting: the store would not deliver their events.
        """
        changed: dict[StreamName, Aggregate] = {}
        for aggregate in aggregates:
            stream = self.stream_of(type(aggregate), aggregate.id)
            if expected_version not in (None, aggregate.version):
                raise stale_version(stream, expected=expected_version, found=aggregate.version)
            if aggregate.pending_events and changed.setdefault(stream, aggregate) is not aggregate:
                raise two_instances(stream, changed[stream], aggregate)
        if changed and self._check is not None:
            self._check(one.type for each in changed.values() for one in each.pending_events)
        return changed

    def _appends(
        self, changed: Mapping[StreamName, Aggregate], metadata: Metadata
    ) -> list[StreamAppend]:
        return [
            StreamAppend(
                stream,
                aggregate.version,
                [self._new_event(pending, metadata) for pending in aggregate.pending_events],
            )
            for stream, aggregate in changed.items()
        ]

    def get_newest(self, cls: type[A], id: str) -> A:
        """Return an aggregate as `get` does, from no replica that may lag behind.

        Raises:
            CQRSError: as `get` does.
        """
        stream = self.stream_of(cls, id)
        if self._replica is not None:
            self._replica.read_from_primary(stream)
        return self.get(cls, id)

    @property
    def encloses_handlers(self) -> bool:
        """Whether what a handler writes by its own means belongs to the store's transaction.

        Then that must be open when the handler is called.
        """
        return self._enclosing is not None and self._enclosing.encloses_handlers

    def _may_keep(self) -> bool:
        # In a transaction that is not the session's to end, what is read may never be committed.
        return self._enclosing is None or not self._enclosing.is_in_transaction

    def begin(self, *, is_enclosing: bool = False) -> StoreTransaction:
        """Begin a transaction in the store's database.

        Args:
            is_enclosing: a handler is called in it; only where that is asked for, see
                `encloses_handlers`.

        Raises:
            SessionError: the store is in no SQL database.
            StoreUnavailable: the server does not answer.
        """
        if is_enclosing and self._enclosing is not None:
            return self._enclosing.begin(is_enclosing=True)
        if self._transactions is None:
            raise SessionError(
                "session.connection was asked for, but the event store is in no SQL database:"
                f" {self._store!r}. Keep the events in one, or write the row in a subscription."
            )
        return self._transactions.begin()

    def stream_of(self, cls: type[Aggregate], id: str) -> StreamName:
        """Return the name of an aggregate's stream.

        Raises:
            TypeError: the class is none of an aggregate, or the id is no text.
            InvalidText: no store can keep it for the id's sake.
        """
        try:
            kind = cls.__aggregate_type__
        except AttributeError:
            raise TypeError(
                f"{getattr(cls, '__qualname__', repr(cls))} is no aggregate; expected a class below"
                " Aggregate, and an id: session.get(InventoryItem, '42')"
            ) from None
        if not isinstance(id, str):
            raise TypeError(f"{kind} was asked for by the id {id!r}; expected text, as str(id)")
        check_text(id, f"the id of {kind}")
        return StreamName(self._serializer.application, kind, id)

    def _new_event(self, pending: PendingEvent, metadata: Metadata) -> NewEvent:
        name, version, data = self._serializer.seal(pending.type, pending.data)
        return NewEvent(pending.event_id, name, version, pending.timestamp, data, metadata)


def _committed(error: SubscriptionFailed, appends: Iterable[StreamAppend]) -> Committed:
    """Return where a commit ended that a subscription's failure followed."""
    versions = [append.expected_version + len(append.events) for append in appends]
    return Committed(error.position, tuple(versions))


def two_instances(stream: StreamName, first: Aggregate, second: Aggregate) -> DuplicateInstance:
    """Return the error for one aggregate that is there in two instances."""
    return DuplicateInstance(
        f"{stream} is there in two instances, at version {first.version} and {second.version};"
        " expected one: what one records, the other does not know. Use the one that get returns.",
        stream=str(stream),
        expected=first.version,
        found=second.version,
    )
