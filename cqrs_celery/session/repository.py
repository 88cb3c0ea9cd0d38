"""Load aggregates from a store and save them to it.

A save is one append, however many aggregates it has. An aggregate changes only if the save
succeeded, so a failed save may be repeated: its events keep their ids, and the store recognises
them.

A load replays the events after the cached state; without one, the events after the snapshot; or
else all events. The result is the same. A cached state or a snapshot is discarded if the stream's
events do not follow it, or if the stream does not have the events it was made of, as after
restoring a backup or in another database. To check that, each state carries the version and id of
its last event, and the same read compares them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

from ..domain.aggregate import Aggregate, PendingEvent
from ..domain.lifecycle import build, mark_saved
from ..errors import (
    AggregateNotFound,
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
from .refusals import not_checking, two_instances
from .replaying import Replayer
from .snapshots import Snapshots

A = TypeVar("A", bound=Aggregate)

logger = logging.getLogger(__name__)


class Repository:
    """Loads aggregates from a store and saves them to it.

    Args:
        store: the event store.
        serializer: encodes and decodes events, and names the application.
        snapshots: of the aggregates that have a snapshot policy; None for no snapshots.
        cache: the cache of aggregates; None for none.
        check: called with the events' classes before each append; an exception refuses it.
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
        self._checks_versions = capabilities.checks_versions
        self._check = check
        self._serializer = serializer
        self._cache = cache
        self.snapshots = snapshots
        self._replayer = Replayer(store, serializer)
        self._keeper = Keeper(self._replayer, snapshots, cache)

    def find(self, cls: type[A], id: str) -> A | None:
        """Return an aggregate as its events have made it, or None if it has no events.

        Raises:
            AggregateNotConstructible: the class can't be built from an id alone.
            EventOutOfOrder: its history has a gap or a repeat.
            ForeignEvent: its history holds another aggregate's event.
            UnhandledEvent: the class is strict and has no `applies` method for an event.
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
        """Return an aggregate as `find` does, but without the cache.

        Args:
            cls: the aggregate's class.
            id: the aggregate's id.
            from_events_alone: whether to ignore the snapshot too.

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
        """Return a cached aggregate with the events since applied; None if it is not cached."""
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
                "cached state of %s does not match its events, evicted: %s: %s",
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
        """Return an aggregate as its events have made it.

        If a replica does not have it, the primary is read.

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
                f" {self._serializer.application!r}. Check the id, or use find: it returns None.",
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
        unchanged: Collection[Aggregate] = (),
    ) -> Committed | None:
        """Append the pending events of aggregates, all or none, and clear what was pending.

        Args:
            aggregates: the aggregates; one with nothing pending is skipped.
            metadata: of all their events.
            command: recorded with the events; the save is refused if it was recorded before.
            lease: the worker's lease on its message; the save is refused if it was lost.
            expected_version: the version that they must have; None for the one that was loaded.
            transaction: committed with the events, and then ended.
            unchanged: aggregates that must still be at the version that was loaded.

        Returns:
            The end of the commit; None if nothing was pending, and no event was written.

        Raises:
            ConcurrencyError: another writer committed first; nothing was written.
            StaleVersion: an aggregate is not at `expected_version`; nothing was written.
            DuplicateInstance: two instances of one aggregate were given; nothing was written.
            SubscriptionFailed: everything was written, and a subscription in this process failed.
            DuplicateCommand: the command has committed before; nothing was written.
            LeaseLost: the worker no longer holds its message; nothing was written.
            UnwritableMessage: an event is too large; nothing was written.
            StoreUnavailable: the server does not answer. The save may be repeated.
        """
        changed = self._changed(aggregates, expected_version)
        if not changed:
            self._commit_rows(transaction, unchanged, command, lease)
            return None
        appends = self._appends(changed, metadata, unchanged)
        try:
            committed = (transaction or self._store).append(appends, command=command, lease=lease)
        except SubscriptionFailed as error:
            self._mark_saved(changed, _committed(error, appends))
            raise
        except BaseException as error:
            self._keeper.forget(changed, error)
            raise
        self._mark_saved(changed, committed)
        return committed

    def _commit_rows(
        self,
        transaction: StoreTransaction | None,
        unchanged: Collection[Aggregate],
        command: CommandRecord | None,
        lease: Lease | None,
    ) -> None:
        """Commit what was written in a transaction, if there is one."""
        if transaction is None:
            return
        if unchanged:
            transaction.append(self._checks(unchanged, {}), command=command, lease=lease)
        else:
            transaction.commit(command=command, lease=lease)

    def _checks(
        self, unchanged: Iterable[Aggregate], changed: Mapping[StreamName, Aggregate]
    ) -> list[StreamAppend]:
        """Return the appends without events that check the aggregates that are not changed."""
        streams = {self.stream_of(type(one), one.id): one.version for one in unchanged}
        return [StreamAppend(key, streams[key], ()) for key in streams if key not in changed]

    def _mark_saved(self, changed: Mapping[StreamName, Aggregate], committed: Committed) -> None:
        is_kept = self._may_keep()
        # Behind the changed ones, there are the versions of streams that were only checked.
        for (stream, aggregate), version in zip(changed.items(), committed.versions, strict=False):
            since, recorded = aggregate.version, aggregate.pending_events
            mark_saved(aggregate, version)
            if is_kept:
                self._keeper.keep(aggregate, stream, recorded, since=since)

    def _changed(
        self, aggregates: Iterable[Aggregate], expected_version: int | None
    ) -> dict[StreamName, Aggregate]:
        """Return the aggregates that have pending events, by their streams.

        Raises:
            StaleVersion: an aggregate is not at `expected_version`.
            DuplicateInstance: two instances of one aggregate were given.
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
        self,
        changed: Mapping[StreamName, Aggregate],
        metadata: Metadata,
        unchanged: Collection[Aggregate],
    ) -> list[StreamAppend]:
        appends = [
            StreamAppend(
                stream,
                aggregate.version,
                [self._new_event(pending, metadata) for pending in aggregate.pending_events],
            )
            for stream, aggregate in changed.items()
        ]
        if unchanged:
            appends += self._checks(unchanged, changed)
        return appends

    def get_newest(self, cls: type[A], id: str) -> A:
        """Return an aggregate as `get` does, but never from a replica, which may lag behind.

        Raises:
            CQRSError: as `get` does.
        """
        stream = self.stream_of(cls, id)
        if self._replica is not None:
            self._replica.read_from_primary(stream)
        return self.get(cls, id)

    @property
    def encloses_handlers(self) -> bool:
        """Whether a handler's own writes to the database belong to the store's transaction.

        If so, the transaction must be open when the handler is called.
        """
        return self._enclosing is not None and self._enclosing.encloses_handlers

    def _may_keep(self) -> bool:
        # What is read in a transaction that the session does not end may never be committed.
        return self._enclosing is None or not self._enclosing.is_in_transaction

    def check_version_checks(self) -> None:
        """Check that the store can check the version of a stream that gets no events.

        Raises:
            SessionError: it does not declare that.
        """
        if not self._checks_versions:
            raise not_checking(self._store)

    def begin(self, *, is_enclosing: bool = False) -> StoreTransaction:
        """Begin a transaction in the store's database.

        Args:
            is_enclosing: whether a handler is called in it; only for a store that asks for it, see
                `encloses_handlers`.

        Raises:
            SessionError: the event store is not in a SQL database.
            StoreUnavailable: the server does not answer.
        """
        if is_enclosing and self._enclosing is not None:
            return self._enclosing.begin(is_enclosing=True)
        if self._transactions is None:
            raise SessionError(
                "session.connection was used, but the event store is not in a SQL database:"
                f" {self._store!r}. Keep the events in one, or write the row in a subscription."
            )
        return self._transactions.begin()

    def stream_of(self, cls: type[Aggregate], id: str) -> StreamName:
        """Return the name of an aggregate's stream.

        Raises:
            TypeError: the class is not an aggregate's, or the id is not a str.
            InvalidText: the id has a character that not every store can hold.
        """
        try:
            kind = cls.__aggregate_type__
        except AttributeError:
            raise TypeError(
                f"{getattr(cls, '__qualname__', repr(cls))} is no aggregate; expected a subclass of"
                " Aggregate, and an id: session.get(InventoryItem, '42')"
            ) from None
        if not isinstance(id, str):
            raise TypeError(f"{kind} was requested by the id {id!r}; expected a str: str(id)")
        check_text(id, f"the id of {kind}")
        return StreamName(self._serializer.application, kind, id)

    def _new_event(self, pending: PendingEvent, metadata: Metadata) -> NewEvent:
        name, version, data = self._serializer.seal(pending.type, pending.data)
        return NewEvent(pending.event_id, name, version, pending.timestamp, data, metadata)


def _committed(error: SubscriptionFailed, appends: Iterable[StreamAppend]) -> Committed:
    """Return the end of a commit that was followed by the failure of a subscription."""
    versions = [append.expected_version + len(append.events) for append in appends]
    return Committed(error.position, tuple(versions))
