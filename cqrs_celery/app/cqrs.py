"""Make a Celery application a CQRS application.

    app = Celery("inventory")
    app.config_from_object("celeryconfig")
    cqrs = CQRS(app)

Connections are opened and settings are read when they are first needed. A worker checks the
settings at its start.
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
from .broker import has_reliable_queue
from .composition import compose, open_store_or_none
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
        store: the event store, in place of the one that `cqrs_event_store` names: any object that
            fulfils the `EventStore` port, and delivers if there are subscriptions to events.
        snapshots: any object that fulfils the `SnapshotStore` port; None for the event store's.
        middleware: wraps every handler, the first one outermost; see `dispatch.middleware`.

    Raises:
        RegistrationError: an item of the middleware is not a middleware.
        DuplicateRegistration: the Celery application has a `CQRS` already, which is `app.cqrs`.
        TypeError: `app` is not a Celery application.
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
        """The parts that the application's tasks run with; built at the first use."""
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
        """The event store without its relay, for the maintenance of its tables.

        For a store in a SQL database, this needs no broker, and the broker is not checked.

        Raises:
            InvalidSetting: a setting has a value that is not accepted; or the given store lacks a
                method of its port, or of a port that it declares.
            MissingDependency: the store's driver is not installed.
        """
        if self._given_store is None:
            return open_store_or_none(self.app, self.settings, deliver=self._deliver)
        check_capabilities(self._given_store)
        return self._given_store

    def check_handlers(self) -> None:
        """Check that the application has everything that its handlers and aggregates need.

        These are messages that can be written as JSON, an event store that delivers, locks, values
        of the types that handlers ask for, and aggregates whose state can be kept in a snapshot.

        Raises:
            InvalidSetting: something is missing, such as a capability of the event store.
            RegistrationError: a message's fields, or the state in a snapshot, can't be written.
            HandlerSignatureError: a value that a handler asks for is not provided, or can't be.
            DuplicateRegistration: two tasks have the same name.
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
        """Import the modules `handlers` and `subscriptions` of packages when a worker starts.

        Args:
            packages: their names; None for those of Django's INSTALLED_APPS.
            force: True to import them now, as needed for `execute` outside a worker.

        Raises:
            ModuleNotFoundError: a package is not found; without `force`, it ends a worker's start.
        """
        names = None if packages is None else list(packages)
        for module in ("handlers", "subscriptions"):
            found = None if names is None else partial(import_from, names, module)
            self.app.autodiscover_tasks(found, related_name=module, force=force)

    context = staticmethod(context)

    def session(self) -> Session:
        """Return a unit of work for use outside a handler; `with` commits it.

        A handler has a session of its own. A commit by another session stands even if the handler
        fails, and is made again whenever the handler is repeated. The session's events carry the
        trace of the message being handled, or begin a new one.
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
            idempotency_key: a key of 1 to 200 characters, to be the same whenever the command is
                executed or sent again. The command then has its effect once, and each call gets the
                first outcome. Commands of other classes may have the same key.

        Returns:
            The value that the handler returned, and the position of its last event.

        Raises:
            HandlerNotFound: no handler is declared in this process.
            NestedExecution: a handler called this.
            InsideEventLoop: a coroutine called this.
            ConcurrencyError: other writers committed first, again and again.
            StaleVersion: the aggregate is not at the handler's `expected_version`; it ran once.
            SubscriptionFailed: it has committed in memory; then a subscription's function failed.
            LockTimeout: the aggregate's lock was held by others all the time.
            StoreUnavailable: the store's server does not answer.
            UnwritableMessage: a value in the command would be read back as another value.
            ValueError: the key is not a text, or is empty or too long.
            TypeError: `command` is not a command.
            Exception: the exception that the handler raised; nothing was committed.
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
        """Answer a query by its handler, in this process.

        Args:
            query: the message.

        Returns:
            The value that the handler returned.

        Raises:
            HandlerNotFound: no handler is declared in this process.
            InsideEventLoop: a coroutine called this.
            TypeError: `query` is not a query.
            Exception: the exception that the handler raised.
        """
        check_no_loop("query", query)
        answer: R = self.runtime.bus.answer(query)
        return answer

    async def query_async(self, query: Query[R]) -> R:
        """Answer a query by its handler, without blocking the event loop; see `query`."""
        answer: R = await self.runtime.bus.answer_async(query)
        return answer

    def send_command(self, command: Command[R], **options: Any) -> SentCommand[R]:
        """Send a command to its handler's worker; `command.delay()` does this.

        Args:
            command: the message.
            options: Celery's own, such as `countdown`, `priority` or `task_id`; and
                `idempotency_key`, the same whenever the command is sent or executed again. It then
                has its effect once; each sending has its own result, with the first one's outcome.

        Returns:
            A Celery AsyncResult.

        Raises:
            PublishFailed: the broker did not accept the message.
            ValueError: the key is not a text of 1 to 200 characters.
            TypeError: `command` is not a command.
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
            capacity: how many messages may wait in each subscriber's queue before this one, not
                counting those that workers hold; None for any number.
            timeout_s: seconds to wait for room, blocking this thread; 0 tries once.
            message_id: an id of 1 to 200 characters, to be the same if the message is published
                again because the first outcome is unknown. It is remembered for the transport's
                `dedup_ttl_s`, 2 minutes.

        Returns:
            The message's id, and the number of queues it went to.

        Raises:
            QueueFull: there was no room in time; no subscriber got the message.
            PublishFailed: the broker did not answer, nor to `task_publish_retry_policy`'s retries.
            UnwritableMessage: the message is too large, or would be read back as another value.
            InvalidSetting: there is a capacity, and the broker is not the reliable queue.
            TypeError: `message` is an event, a command or a query.
            ValueError: the capacity, the timeout or the id has a value that is not accepted.
        """
        return self._publisher.publish(
            message, capacity=capacity, timeout_s=timeout_s, message_id=message_id
        )

    def _attempt(self, command: Command, definition: Definition, key: str | None) -> Attempt:
        stream = stream_of(command, self.settings.application)
        # Written and read, as a worker would get it: checked, and apart from the caller's object.
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
