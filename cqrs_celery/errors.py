"""Every error of the package, in one tree.

CQRSError
├── ConfigurationError            the program is put together wrongly; found at import or start
│   ├── NotConfigured             no CQRS app in this process
│   ├── InvalidSetting            a `cqrs_…` setting has a value that is not accepted
│   ├── MissingDependency         an optional package or server program is not installed
│   ├── UnsupportedCelery         this version of Celery lacks what the transport changes in it
│   ├── UnsupportedFormat         a later release has given the queues' keys another form
│   ├── BrokerConflict            the application's events are relayed to another broker already
│   └── RegistrationError         a message type or handler can't be registered
│       ├── DuplicateRegistration     the name, or the command, is taken
│       ├── ReservedFieldName         a message field hides a name of the base class
│       └── HandlerSignatureError     a handler's parameters don't fit what it handles
├── MessageError                  a message can't be read; it becomes a dead letter
│   ├── UnknownMessageType        its name or version is not registered
│   ├── MalformedMessage          its bytes don't fit the registered type
│   │   └── UnwritableMessage         it can't be written so that it could be read again
│   └── UpcastFailed              an upcaster raised, or returned what it may not
├── HandlerNotFound               nothing handles this message
├── AggregateError
│   ├── AggregateNotFound         the stream has no events
│   ├── AggregateNotConstructible the class can't be built from an id alone
│   ├── MissingAggregateId        an event was recorded by an aggregate without an id
│   ├── EventOutOfOrder           history has a gap or a repeat
│   ├── ForeignEvent              history holds another aggregate's event
│   ├── SnapshotError             a state can't be kept in a snapshot, or got out of one
│   └── UnhandledEvent            a strict aggregate has no `applies` method for it
├── SessionError                  a session was used after its end, or committed in a handler
├── StoreError
│   ├── ConcurrencyError          another writer committed first
│   │   ├── TransactionConflict       the database ended the transaction for another's sake
│   │   ├── StaleVersion              the caller's expected version is not the aggregate's
│   │   ├── AggregateExists           one was made as new, without a look, that exists
│   │   └── DuplicateInstance         one aggregate is there in two instances in one session
│   ├── DuplicateCommand          the command has committed before
│   ├── InvalidText               an id or a name has a character that not every store can hold
│   ├── LeaseLost                 the writer no longer holds its message
│   ├── SchemaError               the store's tables are missing or of another version
│   ├── StoreWentBack             the store is in an earlier state than it was
│   └── StoreUnavailable          the store's server does not answer
├── NestedExecution               a handler called `execute`
├── InsideEventLoop               `execute` or `query` was called by a coroutine
├── HandlerCancelled              an async handler was cancelled from within
├── SubscriptionFailed            in memory: committed, but a subscription's function raised
├── LockTimeout                   somebody else held an aggregate's lock for too long
└── PublishFailed                 a message could not be handed to the broker
    └── QueueFull                 a subscriber's queue had no room for it in time

Errors carry what they name as attributes, and keep these through pickling between pool processes
and through results that Celery writes as JSON.

This is one module, longer than others, since the tree of errors is one thing: whoever catches an
error sees here what else comes under the same base.
"""

from __future__ import annotations

from typing import Any


def _rebuild(cls: type[CQRSError], args: tuple[Any, ...], attributes: dict[str, Any]) -> CQRSError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(attributes)
    return error


class CQRSError(Exception):
    """The base of every error that this package raises.

    Its text says what was tried, expected and found; keyword arguments become attributes. They are
    its second argument too, since Celery writes an exception's arguments alone into a result.
    """

    def __init__(self, message: str, fields: Any = None, /, **more: Any) -> None:
        named = {**fields, **more} if isinstance(fields, dict) else more
        super().__init__(message, named) if named else super().__init__(message)
        self.__dict__.update(named)

    def amend(self, **fields: Any) -> None:
        """Give an error that was raised more fields, or others; a result keeps these too."""
        known = self.args[1] if len(self.args) > 1 else {}
        self.args = (str(self), {**known, **fields})
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(CQRSError):
    """The program is put together wrongly."""


class NotConfigured(ConfigurationError):
    """A message was sent or run, and this process has no `CQRS(app)`."""


class InvalidSetting(ConfigurationError):
    """A setting has a value that is not accepted; the text names it and what is accepted."""

    setting: str
    accepted: str


class MissingDependency(ConfigurationError):
    """An optional package or program is missing; the text says how to install it."""


class UnsupportedCelery(ConfigurationError):
    """The installed Celery or Kombu lacks what the transport changes or uses; the text names it."""

    celery_version: str
    kombu_version: str
    missing: tuple[str, ...]


class UnsupportedFormat(ConfigurationError):
    """The keys of the queues have a form of a later release; the text says what to do.

    Attributes:
        found: the number of that form.
        known: the highest number that this release knows.
    """

    found: int
    known: int


class BrokerConflict(ConfigurationError):
    """Workers of one application, on one store, have two brokers; both are named."""

    application: str


class RegistrationError(ConfigurationError):
    """A message type or a handler can't be registered."""


class DuplicateRegistration(RegistrationError):
    """Two parties claim one name or one command; the text names both."""


class ReservedFieldName(RegistrationError):
    """A field of a message hides a name of its base class."""

    field: str


class HandlerSignatureError(RegistrationError):
    """A parameter of a handler does not fit; the text says what was expected."""


class MessageError(CQRSError):
    """A stored or received message can't be read."""


class UnknownMessageType(MessageError):
    """A message has a name and version that nobody registered."""

    name: str
    version: int


class MalformedMessage(MessageError):
    """A message's content does not fit its type; the text says where."""

    name: str
    version: int


class UnwritableMessage(MalformedMessage):
    """A message or a result could not be written so that the same would be read again.

    It is raised where it was recorded, sent or returned; nothing was stored or sent. In a command's
    handler it is the command's outcome, and makes no dead letter.
    """


class UpcastFailed(MessageError):
    """An upcaster failed; what it raised is the cause."""

    name: str
    version: int


class HandlerNotFound(CQRSError):
    """A message has no handler of the kind looked for, which is a sync or an async one."""

    message_type: str
    looked_for: str


class AggregateError(CQRSError):
    """An aggregate can't be loaded or changed."""


class AggregateNotFound(AggregateError):
    """An aggregate has no events in the store."""

    aggregate_type: str
    aggregate_id: str


class AggregateNotConstructible(AggregateError):
    """An aggregate class can't be built from an id alone."""

    aggregate_type: str


class MissingAggregateId(AggregateError):
    """Neither the aggregate nor the event has an id; the text names both."""

    aggregate_type: str
    event_type: str


class EventOutOfOrder(AggregateError):
    """A stream has another version where the next one was expected."""

    stream: str
    expected: int
    found: int


class ForeignEvent(AggregateError):
    """A stream holds an event of another aggregate; both are named."""

    stream: str
    expected: str
    found: str


class SnapshotError(AggregateError):
    """An aggregate's state can't be kept as a snapshot, or restored from one; the text says why.

    It never makes a command fail: it is logged, and the events are replayed.
    """

    aggregate: str


class UnhandledEvent(AggregateError):
    """A strict aggregate class does not apply an event type."""

    aggregate_type: str
    event_type: str


class SessionError(CQRSError):
    """A session was used after its end, or committed where it may not be."""


class StoreError(CQRSError):
    """An event store refused an operation, or failed at it."""


class ConcurrencyError(StoreError):
    """Another writer committed to the stream first: it is at another version than was expected.

    Nothing of the commit was written. Load the aggregate again and repeat the command.
    """

    stream: str
    expected: int
    found: int


class TransactionConflict(ConcurrencyError):
    """The database ended the transaction for another's sake, by deadlock or serialization.

    `expected` and `found` are the same: no version was at fault. Nothing was written.
    """


class StaleVersion(ConcurrencyError):
    """An aggregate is not at the version that the caller of `get` or `save` expects.

    Nothing was written. Repeating the command can't help, so no handler is repeated for it: whoever
    chose the version must look at the aggregate again.
    """


class AggregateExists(ConcurrencyError):
    """An aggregate was made and added to a session that has not looked whether it exists; it does.

    Nothing was written. Repeating the command can't help, so no handler is repeated for it. Look
    with `find`, and decide what an existing one means: nothing to do, or a refusal.
    """


class DuplicateInstance(ConcurrencyError):
    """One aggregate is there in two instances, of which each knows only its own changes.

    A mistake of the program, so no handler is repeated for it. `expected` and `found` are the
    versions of the two. Nothing was written.
    """


class DuplicateCommand(StoreError):
    """The command has committed before; the error carries the outcome that was then recorded."""

    command_id: str
    position: int
    outcome: str


class InvalidText(StoreError, ValueError):
    """An id or a name has a NUL, or half of a surrogate pair; not every store can hold such a text.

    Nothing was written. Use another id.
    """

    text: str


class LeaseLost(StoreError):
    """A worker's lease on its message ended before it committed; nothing was written."""

    message_id: int


class SchemaError(StoreError):
    """A SQL store's tables are missing or of another version; the text says how to make them."""


class StoreWentBack(StoreError):
    """A store no longer has an event that it had, as after restoring a backup."""

    position: int
    event_id: str


class StoreUnavailable(StoreError):
    """A store's server does not answer; the driver's error is its cause.

    `is_misconfigured` is True where waiting will hardly help: the server has no such database or
    user, the file has no folder, the driver is not installed.
    """

    is_misconfigured: bool = False


class NestedExecution(CQRSError):
    """A handler called `execute`, or waits for what runs when it is through; nothing was done.

    Attributes:
        command: the name of the command's class.
        handler: the function's module and name.
    """

    command: str
    handler: str


class InsideEventLoop(CQRSError):
    """`execute` or `query` was called where an event loop runs, which would stand still meanwhile.

    Attributes:
        message_type: the name of the command's or query's class.
        instead: the method to await.
    """

    message_type: str
    instead: str


class HandlerCancelled(CQRSError):
    """An async handler was cancelled from within, or since its process ends; nothing was committed.

    Attributes:
        handler: the function's module and name.
    """

    handler: str


class SubscriptionFailed(CQRSError):
    """A subscription's function raised in the process that committed; the commit stands.

    Only a store in memory runs subscriptions there. What the function raised is the cause. Nothing
    is repeated: all other subscriptions have got their events.

    Attributes:
        subscription: the name of the function's task.
        stream: of the event that it was given.
        version: of that event.
        position: of the last event of the commit.
        failures: how many calls of functions failed; the first one is named.
    """

    subscription: str
    stream: str
    version: int
    position: int
    failures: int


class LockTimeout(CQRSError):
    """Somebody else held the aggregate's lock for all the time that a command waited for it.

    The command was not carried out. Repeat it.
    """

    aggregate: str
    holder: str
    waited_s: float


class PublishFailed(CQRSError):
    """A message could not be handed to the broker; the driver's error is the cause.

    `repeat_with` has the keyword arguments with which it is sent again without having its effect
    twice, if it was sent after all: `command.delay(**error.repeat_with)`.
    """

    message_id: str
    repeat_with: dict[str, str]


class QueueFull(PublishFailed):
    """Too many messages wait in a queue; nobody got the one that was to be published."""

    queue: str
    capacity: int
    found: int
