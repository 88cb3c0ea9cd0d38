"""All errors of the package, in one tree.

CQRSError
├── ConfigurationError            the program is set up wrongly; raised at import or at start
│   ├── NotConfigured             no CQRS app in this process
│   ├── InvalidSetting            a `cqrs_…` setting has a value that is not accepted
│   ├── MissingDependency         an optional package or server program is not installed
│   ├── UnsupportedCelery         this version of Celery lacks what the transport changes in it
│   ├── UnsupportedFormat         a later release wrote the queues' keys in a newer format
│   ├── BrokerConflict            another relay sends the application's events to another broker
│   └── RegistrationError         a message type or handler can't be registered
│       ├── DuplicateRegistration     the name is taken, or the command has a handler already
│       ├── ReservedFieldName         a message field hides a name of the base class
│       └── HandlerSignatureError     a handler's parameters don't fit what it handles
├── MessageError                  a message can't be read; it becomes a dead letter
│   ├── UnknownMessageType        its name or version is not registered
│   ├── MalformedMessage          its bytes don't fit the registered type
│   │   └── UnwritableMessage         it can't be written so that the same is read back
│   └── UpcastFailed              an upcaster raised, or returned an invalid value
├── HandlerNotFound               no handler is registered for this message
├── AggregateError
│   ├── AggregateNotFound         the stream has no events
│   ├── AggregateNotConstructible the class can't be built from an id alone
│   ├── MissingAggregateId        an event was recorded by an aggregate without an id
│   ├── EventOutOfOrder           history has a gap or a repeat
│   ├── ForeignEvent              history holds another aggregate's event
│   ├── SnapshotError             a state can't be saved in a snapshot, or restored from one
│   └── UnhandledEvent            a strict aggregate has no `applies` method for the event
├── SessionError                  a session was used after its end, or committed in a handler
├── StoreError
│   ├── ConcurrencyError          another writer committed first
│   │   ├── TransactionConflict       the database aborted the transaction in favour of another
│   │   ├── StaleVersion              the aggregate is not at the version that the caller expects
│   │   ├── AggregateExists           an aggregate was added as new, unchecked, and it exists
│   │   └── DuplicateInstance         one session was given two instances of one aggregate
│   ├── DuplicateCommand          the command has committed before
│   ├── InvalidText               an id or a name has a character that not every store can hold
│   ├── LeaseLost                 the worker no longer holds its message
│   ├── SchemaError               the store's tables are missing or of another version
│   ├── StoreWentBack             the store has lost events, as after restoring a backup
│   └── StoreUnavailable          the store's server does not answer
├── NestedExecution               a handler called `execute`
├── InsideEventLoop               `execute` or `query` was called where an event loop runs
├── HandlerCancelled              an async handler was cancelled from within
├── SubscriptionFailed            in memory: committed, but a subscription's function raised
├── LockTimeout                   the lock of an aggregate was held by another for too long
└── PublishFailed                 the broker did not take a message
    └── QueueFull                 a subscriber's queue had no room for it in time

An error carries the things that its text names as attributes. It keeps them when it is pickled
between pool processes, and in results that Celery writes as JSON.

This is one module, longer than others, since the tree of errors is one thing: whoever catches an
error sees here which other errors have the same base.
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

    The text says what was tried, expected and found. Keyword arguments become attributes. They are
    also the second item of `args`, since Celery writes only an exception's `args` into a result.
    """

    def __init__(self, message: str, fields: Any = None, /, **more: Any) -> None:
        named = {**fields, **more} if isinstance(fields, dict) else more
        super().__init__(message, named) if named else super().__init__(message)
        self.__dict__.update(named)

    def amend(self, **fields: Any) -> None:
        """Add or replace fields of an error that was raised; a result keeps these too."""
        known = self.args[1] if len(self.args) > 1 else {}
        self.args = (str(self), {**known, **fields})
        self.__dict__.update(fields)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))


class ConfigurationError(CQRSError):
    """The program is set up wrongly."""


class NotConfigured(ConfigurationError):
    """A message was sent or run in a process that has no `CQRS(app)`."""


class InvalidSetting(ConfigurationError):
    """A setting has a value that is not accepted; the text names it and the accepted values."""

    setting: str
    accepted: str


class MissingDependency(ConfigurationError):
    """An optional package or program is not installed; the text says how to install it."""


class UnsupportedCelery(ConfigurationError):
    """The installed Celery or Kombu lacks what the transport changes or uses; the text names it."""

    celery_version: str
    kombu_version: str
    missing: tuple[str, ...]


class UnsupportedFormat(ConfigurationError):
    """The keys of the queues are in the format of a later release; the text says what to do.

    Attributes:
        found: the number of that format.
        known: the highest number that this release knows.
    """

    found: int
    known: int


class BrokerConflict(ConfigurationError):
    """Workers of one application, on one store, use two brokers; the text names both."""

    application: str


class RegistrationError(ConfigurationError):
    """A message type or a handler can't be registered."""


class DuplicateRegistration(RegistrationError):
    """Two classes or functions claim one name or one command; the text names both."""


class ReservedFieldName(RegistrationError):
    """A field of a message hides a name of its base class."""

    field: str


class HandlerSignatureError(RegistrationError):
    """A parameter of a handler does not fit; the text says what was expected."""


class MessageError(CQRSError):
    """A stored or received message can't be read."""


class UnknownMessageType(MessageError):
    """A message has a name and version that are not registered."""

    name: str
    version: int


class MalformedMessage(MessageError):
    """A message's content does not fit its type; the text says where."""

    name: str
    version: int


class UnwritableMessage(MalformedMessage):
    """A message or a result can't be written as JSON from which the same value is read back.

    It is raised where the message is recorded or sent, or the result returned; nothing was stored
    or sent. In a command's handler it is the outcome of the command, and makes no dead letter.
    """


class UpcastFailed(MessageError):
    """An upcaster failed; the exception that it raised is the cause."""

    name: str
    version: int


class HandlerNotFound(CQRSError):
    """A message has no handler of the kind that was looked for, sync or async."""

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
    """A stream holds another version where the next one was expected."""

    stream: str
    expected: int
    found: int


class ForeignEvent(AggregateError):
    """A stream holds an event of another aggregate; the text names both aggregates."""

    stream: str
    expected: str
    found: str


class SnapshotError(AggregateError):
    """An aggregate's state can't be saved in a snapshot, or restored from one; the text says why.

    It never makes a command fail: it is logged, and the events are replayed.
    """

    aggregate: str


class UnhandledEvent(AggregateError):
    """A strict aggregate class has no `applies` method for an event type."""

    aggregate_type: str
    event_type: str


class SessionError(CQRSError):
    """A session was used after its end, or in a way that it does not allow; the text says which."""


class StoreError(CQRSError):
    """An event store refused an operation, or failed at it."""


class ConcurrencyError(StoreError):
    """Another writer committed to the stream first, so it is not at the expected version.

    Nothing of the commit was written. Load the aggregate again and repeat the command.
    """

    stream: str
    expected: int
    found: int


class TransactionConflict(ConcurrencyError):
    """The database aborted the transaction in favour of another: deadlock or serialization failure.

    No version was at fault, so `expected` and `found` are the same. Nothing was written.
    """


class StaleVersion(ConcurrencyError):
    """An aggregate is not at the version that the caller of `get` or `save` expects.

    Nothing was written. Repeating the command can't help, so no handler is repeated: whoever chose
    the version must look at the aggregate again.
    """


class AggregateExists(ConcurrencyError):
    """An aggregate was added as new to a session that had not looked for it, and it exists.

    Nothing was written. Repeating the command can't help, so no handler is repeated. Look for the
    aggregate with `find`, and decide what it means if it exists: nothing to do, or a refusal.
    """


class DuplicateInstance(ConcurrencyError):
    """A session was given two instances of one aggregate; neither knows the other's changes.

    This is a mistake in the program, so no handler is repeated. `expected` and `found` are the
    versions of the two instances. Nothing was written.
    """


class DuplicateCommand(StoreError):
    """The command has committed before; the error carries the outcome that was recorded then."""

    command_id: str
    position: int
    outcome: str


class InvalidText(StoreError, ValueError):
    """An id or a name has a NUL or half of a surrogate pair, which not every store can hold.

    Nothing was written. Use another id.
    """

    text: str


class LeaseLost(StoreError):
    """A worker's lease on its message ended before the worker committed; nothing was written."""

    message_id: int


class SchemaError(StoreError):
    """A SQL store's tables are missing or of another version; the text says how to create them."""


class StoreWentBack(StoreError):
    """A store no longer has an event that it once had, as after restoring a backup."""

    position: int
    event_id: str


class StoreUnavailable(StoreError):
    """A store's server does not answer; the driver's error is the cause.

    `is_misconfigured` is True if waiting will hardly help: the server has no such database or user,
    the file's folder does not exist, or the driver is not installed.
    """

    is_misconfigured: bool = False


class NestedExecution(CQRSError):
    """A handler called `execute`, or waits for a task that can't run before it returns.

    Nothing was done.

    Attributes:
        command: the name of the command's class.
        handler: the module and name of the handler's function.
    """

    command: str
    handler: str


class InsideEventLoop(CQRSError):
    """`execute` or `query` was called where an event loop runs; the call would have blocked it.

    Attributes:
        message_type: the name of the command's or query's class.
        instead: the method to await.
    """

    message_type: str
    instead: str


class HandlerCancelled(CQRSError):
    """An async handler was cancelled from within, or because its process ends.

    Nothing was committed.

    Attributes:
        handler: the module and name of the handler's function.
    """

    handler: str


class SubscriptionFailed(CQRSError):
    """A subscription's function raised in the process that committed; the commit stands.

    Only a store in memory runs subscriptions in that process. The exception that the function
    raised is the cause. Nothing is repeated: all other subscriptions have received their events.

    Attributes:
        subscription: the name of the function's task.
        stream: the stream of the event that the function was given.
        version: the version of that event.
        position: the position of the commit's last event.
        failures: how many calls of functions failed; the fields above describe the first.
    """

    subscription: str
    stream: str
    version: int
    position: int
    failures: int


class LockTimeout(CQRSError):
    """Somebody else held the aggregate's lock for as long as this command waited for it.

    The command was not carried out. Repeat it.
    """

    aggregate: str
    holder: str
    waited_s: float


class PublishFailed(CQRSError):
    """The broker did not take a message, or did not answer; the driver's error is the cause.

    `repeat_with` holds the keyword arguments with which to send the message again:
    `command.delay(**error.repeat_with)`. If the first attempt was sent after all, the message still
    takes effect only once.
    """

    message_id: str
    repeat_with: dict[str, str]


class QueueFull(PublishFailed):
    """Too many messages wait in a queue; the message was published to no subscriber."""

    queue: str
    capacity: int
    found: int
