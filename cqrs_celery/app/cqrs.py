"""Make a Celery application a CQRS application.

    app = Celery("inventory")
    app.config_from_object("celeryconfig")
    cqrs = CQRS(app)

Nothing is connected, and no setting is read, before it is needed; a worker checks the settings at
its start.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import celery

from ..dispatch.attempts import Attempt, stream_of
from ..dispatch.context import context, current_metadata
from ..dispatch.definitions import Definition, definitions
from ..dispatch.handler import task_of
from ..dispatch.in_process import (
    check_nested,
    check_no_loop,
    sending_later,
    sending_later_async,
)
from ..dispatch.keys import checked_key, command_id_of
from ..dispatch.kinds import check_kind
from ..dispatch.locks import check_locks
from ..dispatch.middleware import Middleware, checked
from ..dispatch.publishing import Published, Publisher
from ..dispatch.runtime import Runtime, add_application
from ..dispatch.sending import send_unhandled
from ..dispatch.typed import Publishable
from ..errors import DuplicateRegistration
from ..messages.codec import check_codecs, codec_of
from ..messages.message import Command, Query
from ..messages.metadata import Metadata, new_id
from ..messages.results import CommandResult, R, SentCommand
from ..messages.sender import use_sender
from ..session.session import Session
from ..store.capabilities import check_capabilities
from ..store.events import StoredEvent
from ..store.ports import EventStore, SnapshotStore
from ..transport.envelope import BODY
from .composition import compose, has_reliable_queue, open_store_or_none
from .current import CurrentApplication
from .delivery import check_delivery
from .discovery import import_from
from .hooks import CeleryHooks
from .in_process_delivery import InProcessDelivery
from .no_store import check_store
from .providing import Providing
from .relaying import RelayParts
from .settings import Settings, check_tasks, read_settings
from .snapshots import (
    check_no_snapshots,
    check_snapshots,
)
from .topics import open_topics
from .worker_queues import choose_queues


class CQRS(Providing):
    """The CQRS side of a Celery application.

    Args:
        app: the Celery application; its configuration holds the settings.
        store: keeps the events, in place of what `cqrs_event_store` names: any object that fulfils
            the `EventStore` port, and delivers, if there are subscriptions to events.
        snapshots: keeps the aggregates' snapshots, in place of where the events are: any object
            that fulfils the `SnapshotStore` port.
        middleware: around every handler, the first one outermost; see `dispatch.middleware`.

    Raises:
        RegistrationError: something among the middleware is none.
        DuplicateRegistration: the Celery application has one already; it is `app.cqrs`.
        TypeError: it is no Celery application.
    """

    def __init__(
        self,
        app: celery.Celery,
        *,
        store: EventStore | None = None,
        snapshots: SnapshotStore | None = None,
        middleware: Iterable[Middleware] = (),
    ) -> None:
        if not isinstance(app, celery.Celery):
            raise TypeError(
                f"CQRS was given {app!r}; expected a Celery application: CQRS(Celery('inventory'))"
            )
        frame = sys._getframe(1)
        self._made_at = f"{frame.f_code.co_filename}:{frame.f_lineno}"
        _check_is_first(app, self._made_at)
        super().__init__()
        self.app = app
        self._given_store = store
        self._given_snapshots = snapshots
        self._middleware = checked(middleware)
        self._lock = threading.RLock()
        self._runtime: Runtime | None = None
        self.relay: RelayParts | None = None
        app.cqrs = self
        add_application(app, self)
        use_sender(CurrentApplication())
        self._hooks = CeleryHooks(app, self._choose_queues)
        self._hooks.connect()

    def __repr__(self) -> str:
        return f"<CQRS {self.app.main}>"

    # ------------------------------------------------------------ parts

    @cached_property
    def settings(self) -> Settings:
        """The checked settings.

        Raises:
            InvalidSetting: a setting has a value that is not accepted.
        """
        return read_settings(self.app)

    @property
    def runtime(self) -> Runtime:
        """What the application's tasks are run with; made at its first use."""
        with self._lock:
            if self._runtime is None:
                settings = self.settings
                check_tasks(self.app)
                self._runtime, self.relay = compose(
                    self.app,
                    settings,
                    self.bare_store,
                    snapshots=self._given_snapshots,
                    middleware=self._middleware,
                    providers=self.providers,
                )
            return self._runtime

    @cached_property
    def _publisher(self) -> Publisher:
        topics = open_topics(self.app) if has_reliable_queue(self.app) else None
        return Publisher(self.runtime, topics, body=BODY)

    @property
    def store(self) -> EventStore:
        """The event store."""
        return self.runtime.store

    @cached_property
    def bare_store(self) -> EventStore:
        """The event store, without what delivers its events: for looking after its tables.

        One in a SQL database needs no broker for that, and nothing of the broker is checked.

        Raises:
            InvalidSetting: a setting has a value that is not accepted; or the store that was given
                lacks a method of its port, or of one that it declares.
            MissingDependency: the store's driver is not installed.
        """
        if self._given_store is None:
            return open_store_or_none(self.app, self.settings, deliver=self._deliver)
        check_capabilities(self._given_store)
        return self._given_store

    def check_handlers(self) -> None:
        """Check that there is what the declared handlers and aggregates ask for.

        That is messages that JSON can hold, an event store that delivers, locks, what handlers ask
        for by its type, and aggregates whose state snapshots can hold.

        Raises:
            InvalidSetting: something is missing, as a capability of the event store.
            RegistrationError: a message's field is of a type that can't be written, or an aggregate
                that has snapshots can't have any.
            HandlerSignatureError: a handler asks for what nobody provides, or it can't be given.
            DuplicateRegistration: two tasks have one name.
        """
        check_codecs(self.runtime.serializer.registry)
        bus = self.runtime.bus
        for definition in definitions.all():
            if definition.asked:
                self.providers.plan_of(definition)
        check_store(self.store, definitions.all(), bus.takes_session)
        check_delivery(self.store)
        for definition in definitions.all():
            check_locks(bus.locks, definition)
            if definition.kind != "query":
                task_of(self.app, definition)
        if bus.repository.snapshots is not None:
            check_snapshots()
        else:
            check_no_snapshots(self.app, self.store)

    # ------------------------------------------------------------ use

    def autodiscover(self, packages: Iterable[str] | None = None, *, force: bool = False) -> None:
        """Import the modules `handlers` and `subscriptions` of packages, when a worker starts.

        Args:
            packages: their names; None for those of Django's INSTALLED_APPS.
            force: True to import them now, as for `execute` in a process that is no worker.

        Raises:
            ModuleNotFoundError: with `force`, a package is not found; without it, a worker that
                starts ends with that error.
        """
        names = None if packages is None else list(packages)
        for module in ("handlers", "subscriptions"):
            found = None if names is None else partial(import_from, names, module)
            self.app.autodiscover_tasks(found, related_name=module, force=force)

    context = staticmethod(context)

    def session(self) -> Session:
        """Return a unit of work, for use outside a handler; `with` commits it.

        A handler has one of its own. What it commits by another stands whatever becomes of the
        handler's, and comes again whenever the handler is repeated.

        Its events carry the trace of what is being handled, or begin one.
        """
        metadata = current_metadata()
        if not metadata.correlation_id:
            metadata = Metadata(correlation_id=new_id())
        return Session(self.runtime.bus.repository, metadata=metadata)

    def execute(
        self, command: Command[R], *, idempotency_key: str | None = None
    ) -> CommandResult[R]:
        """Carry out a command in this process.

        Args:
            command: the message.
            idempotency_key: the same whenever the command is executed or sent again, which then
                has its effect once, and its first outcome; 1 to 200 characters. Other commands may
                have the same.

        Returns:
            What its handler returned, and where its events are.

        Raises:
            HandlerNotFound: no handler is declared in this process.
            NestedExecution: a handler called this.
            InsideEventLoop: a coroutine called this.
            ConcurrencyError: other writers committed first, again and again.
            StaleVersion: the handler's `expected_version` is not the aggregate's; it ran once.
            SubscriptionFailed: it is committed, in memory, and a subscription's function failed.
            LockTimeout: somebody else held the aggregate's lock all the time.
            StoreUnavailable: the store's server does not answer.
            UnwritableMessage: the command holds what would not be read as it is.
            ValueError: the key is no text, empty, or too long.
            TypeError: it is no command.
            Exception: what the handler raised; nothing was committed.
        """
        check_kind(command, "command")
        check_nested(type(command).__qualname__, "execute")
        check_no_loop("execute", command)
        bus = self.runtime.bus
        definition = bus.find(command)
        with sending_later():
            return bus.run(definition, self._attempt(command, definition, idempotency_key))

    async def execute_async(
        self, command: Command[R], *, idempotency_key: str | None = None
    ) -> CommandResult[R]:
        """Carry out a command without blocking the event loop; see `execute`.

        An async handler is awaited; a sync one, and every commit, runs in a thread.
        """
        check_kind(command, "command")
        check_nested(type(command).__qualname__, "execute_async")
        bus = self.runtime.bus
        definition = bus.find(command)
        attempt = self._attempt(command, definition, idempotency_key)
        async with sending_later_async():
            return await bus.run_async(definition, attempt)

    def query(self, query: Query[R]) -> R:
        """Ask a query's handler, in this process; returns what it returns.

        Raises:
            HandlerNotFound: no handler is declared in this process.
            InsideEventLoop: a coroutine called this.
            TypeError: it is no query.
            Exception: what the handler raised.
        """
        check_no_loop("query", query)
        answer: R = self.runtime.bus.answer(query)
        return answer

    async def query_async(self, query: Query[R]) -> R:
        """Ask a query's handler without blocking the event loop; see `query`."""
        answer: R = await self.runtime.bus.answer_async(query)
        return answer

    def send_command(self, command: Command[R], **options: Any) -> SentCommand[R]:
        """Send a command to its handler's worker; `command.delay()` does this.

        Args:
            command: the message.
            options: Celery's own, as `countdown`, `priority`, `task_id`; and `idempotency_key`:
                the same whenever the command is sent or executed again, which then has its effect
                once. Each sending has a result of its own, with the first one's outcome.

        Returns:
            A Celery AsyncResult.

        Raises:
            PublishFailed: the broker did not take it.
            ValueError: the key is no text of 1 to 200 characters.
            TypeError: it is no command.
        """
        check_kind(command, "command")
        definition = definitions.handler_of(type(command))
        sent: SentCommand[R]
        if definition is None:
            sent = send_unhandled(command, self.runtime, options)
        else:
            sent = task_of(self.app, definition).apply_async((command,), **options)
        return sent

    def publish(
        self,
        message: Publishable,
        capacity: int | None = None,
        timeout_s: float = 5.0,
        *,
        message_id: str | None = None,
    ) -> Published:
        """Publish a message that is not stored, to every subscriber or to none.

        Args:
            message: the message.
            capacity: how many messages may wait in each subscriber's queue before it, those that
                workers hold not counted; None for any number.
            timeout_s: seconds to wait for room, blocking this thread; 0 looks once.
            message_id: the same whenever the message is published again because it was unknown
                whether it had been; 1 to 200 characters. Remembered for the transport's
                `dedup_ttl_s`, 2 minutes.

        Returns:
            The message's id, and how many queues it went to.

        Raises:
            QueueFull: there was no room in time; nobody got it.
            PublishFailed: the broker did not answer, as often as `task_publish_retry_policy` says.
            UnwritableMessage: it is too large, or would not be read as it is.
            InvalidSetting: there is a capacity, and the broker is not the reliable queue.
            TypeError: it is an event, a command or a query.
            ValueError: capacity, timeout or id have no value that makes sense.
        """
        return self._publisher.publish(
            message, capacity=capacity, timeout_s=timeout_s, message_id=message_id
        )

    def _attempt(self, command: Command, definition: Definition, key: str | None) -> Attempt:
        stream = stream_of(command, self.settings.application)
        # As a worker would get it: checked, and no longer the caller's to change.
        _, command = codec_of(type(command)).write(command)
        name = self.runtime.serializer.name_of(type(command))
        return Attempt.for_command(
            command,
            definition,
            self.runtime,
            command_id=new_id() if key is None else command_id_of(name, checked_key(key)),
            trace=current_metadata(),
            stream=stream,
            is_remembered=key is not None,
        )

    # ------------------------------------------------------------ delivery in this process

    def _deliver(self, events: Sequence[StoredEvent]) -> None:
        self._delivery.deliver(events)

    @cached_property
    def _delivery(self) -> InProcessDelivery:
        return InProcessDelivery(self.runtime)

    def _choose_queues(self) -> None:
        choose_queues(self.runtime.app, self.settings)


def _check_is_first(app: celery.Celery, here: str) -> None:
    first = getattr(app, "cqrs", None)
    if isinstance(first, CQRS):
        raise DuplicateRegistration(
            f"CQRS(app) was called twice for Celery's app {app.main!r}, at {first._made_at} and at"
            f" {here}: a second one would have an event store of its own. Use app.cqrs, which is"
            " the first, and give it there what it needs."
        )
