"""The base classes of all messages: typed, frozen values under registered names and versions.

    class CheckInItems(Command, name="inventory.check_in_items", aggregate=InventoryItem, key="id"):
        id: str
        count: int

A message holds only the fields that its class declares. The time, the stream and the cause are
metadata, kept outside the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    dataclass_transform,
    get_args,
)

import msgspec

from ..errors import RegistrationError, ReservedFieldName
from .class_options import check_class_options, check_fixed
from .codec import Codec, codec_of, make_codec
from .forms import check_fields, explained
from .pydantic_schema import core_schema_of, json_schema_of
from .registry import Registered, registry, where
from .results import R_co, SentCommand
from .sender import current_sender
from .unknown import unknown_fields_of

__all__ = [
    "Command",
    "Event",
    "Message",
    "MessageMeta",
    "Query",
    "UnknownFields",
    "unknown_fields_of",
]


class MessageMeta(msgspec.StructMeta):
    """The metaclass of messages, which registers every message class once it is complete.

    msgspec calls `__init_subclass__` before a class knows its fields, hence a metaclass.
    """

    def __new__(
        mcs,
        cls_name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        kind: str | None = None,
        name: str | None = None,
        version: int = 1,
        aggregate: type | None = None,
        key: str | None = None,
        aliases: Sequence[str] = (),
        unknown_fields: UnknownFields | None = None,
        **options: Any,
    ) -> Any:
        """Create the class and register it; a class with `kind` is a base and is not registered."""
        if kind is None:
            check_class_options(
                f"{namespace.get('__module__')}.{namespace.get('__qualname__', cls_name)}", options
            )
        options = {"frozen": True, "kw_only": True, **options}
        if unknown_fields is not None:
            options = {**options, **_unknown_options(cls_name, unknown_fields)}
        try:
            cls: Any = super().__new__(mcs, cls_name, bases, namespace, **options)
        except TypeError as error:
            module = namespace.get("__module__", "?")
            raise explained(cls_name, module, namespace, error) from error
        if unknown_fields is not None:
            cls.__keeps_unknown__ = unknown_fields == "keep"
        if kind is not None:
            cls.__kind__ = kind
            cls.__reserved__ = frozenset(n for n in dir(cls) if not n.startswith("_"))
            return cls
        _check_names(cls)
        config = cls.__struct_config__
        check_fixed(where(cls), {name: getattr(config, name) for name in _INHERITED})
        check_fields(cls, namespace)
        _check_aliases(cls, aliases)
        if cls.__kind__ == "query" and (version != 1 or unknown_fields is not None):
            raise _only_for_what_is_kept(cls)
        if cls.__kind__ != "query":
            make_codec(cls)
        cls.__registered__ = registry.add(cls.__kind__, name or cls_name, version, cls, aliases)
        if aggregate is not None or key is not None:
            _check_key(cls, aggregate, key)
            cls.__aggregate__, cls.__key__ = aggregate, key
        return cls

    # Without this, msgspec's __init__ would get the options of __new__.
    def __init__(cls, cls_name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: Any):
        super().__init__(cls_name, bases, namespace)


#: The fixed options that a class may inherit from a msgspec.Struct among its bases.
_INHERITED: Final = ("array_like", "eq", "omit_defaults", "tag")

#: The ways to treat fields that a class does not have.
UnknownFields = Literal["ignore", "refuse", "keep"]


def _unknown_options(cls_name: str, unknown_fields: str) -> dict[str, Any]:
    if unknown_fields not in get_args(UnknownFields):
        raise RegistrationError(
            f"{cls_name} has unknown_fields = {unknown_fields!r}; accepted: 'ignore', 'refuse' or"
            " 'keep'"
        )
    options: dict[str, Any] = {"forbid_unknown_fields": unknown_fields == "refuse"}
    # An instance's dict, if there is one, can hold what is not a field.
    return {**options, "dict": True} if unknown_fields == "keep" else options


def _check_names(cls: Any) -> None:
    """Check that no field has a name that the base class needs.

    Raises:
        ReservedFieldName: a field has such a name, or one that begins with _.
    """
    for field in cls.__struct_fields__:
        if field in cls.__reserved__ or field.startswith("_"):
            raise ReservedFieldName(
                f"{where(cls)} has a field {field!r}, a name that its base class"
                f" {cls.__kind__} reserves"
                f" ({', '.join(sorted(cls.__reserved__)) or 'and names that begin with _'})."
                " Rename the field.",
                field=field,
            )


def _only_for_what_is_kept(cls: Any) -> RegistrationError:
    return RegistrationError(
        f"{where(cls)} has a version or unknown_fields, which are for stored and sent messages:"
        " a query never leaves its process. Remove them."
    )


def _check_aliases(cls: Any, aliases: Sequence[str]) -> None:
    if isinstance(aliases, str):
        raise RegistrationError(
            f"{where(cls)} has aliases = {aliases!r}; expected a tuple of names: ({aliases!r},)"
        )
    if aliases and cls.__kind__ not in ("event", "message"):
        raise RegistrationError(
            f"{where(cls)} has aliases, which are for events and messages: others refer to a"
            f" {cls.__kind__} by its name. Keep the name, and rename only the class."
        )


def _check_key(cls: Any, aggregate: type | None, key: str | None) -> None:
    if cls.__kind__ not in ("command", "message") or (aggregate and cls.__kind__ == "message"):
        raise RegistrationError(
            f"{where(cls)} has an aggregate or a key: only a command may have both; a published"
            " message may have a key"
        )
    if cls.__kind__ == "command" and (aggregate is None or key is None):
        raise RegistrationError(
            f"{where(cls)} has only {'a key' if aggregate is None else 'an aggregate'}; expected"
            " both: aggregate=InventoryItem, key='id'"
        )
    if key not in cls.__struct_fields__:
        raise RegistrationError(
            f"{where(cls)} has the key {key!r}, but its fields are"
            f" {', '.join(cls.__struct_fields__) or 'none'}"
        )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, metaclass=MessageMeta, kind="message", frozen=True):
    """A notice to subscribers that is sent and not stored: `cqrs.publish(message)`.

    Class arguments:
        name: the name under which it is sent; a name without a dot is prefixed with the
            application's.
        version: the version of the message's fields.
        key: the field that orders messages: those of this class with the same value are handled in
            order, one at a time. Without a key, the order is not defined.
        aliases: former names; a message that arrives under one is read as this class.
        unknown_fields: how fields that the class does not have are treated: "ignore" (the default)
            skips them, "refuse" makes them an error, "keep" keeps them with the message (see
            `unknown_fields_of`) and writes them again. A subclass inherits it.
    """

    __kind__: ClassVar[str]
    __reserved__: ClassVar[frozenset[str]]
    __registered__: ClassVar[Registered]
    __aggregate__: ClassVar[type | None] = None
    __key__: ClassVar[str | None] = None
    __keeps_unknown__: ClassVar[bool] = False
    __codec__: ClassVar[Codec | None] = None

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[True]:
            """Tell type checkers that `publish` takes this class; the other kinds override it."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return the schema by which Pydantic and FastAPI accept a message; they call this."""
        return core_schema_of(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """Return the JSON schema for OpenAPI."""
        return json_schema_of(cls)

    def __json__(self) -> dict[str, Any]:
        """Return the plain values that Celery's JSON encoder writes for a message.

        Raises:
            UnwritableMessage: a field holds a value that would not come back unchanged.
        """
        entry = self.__registered__
        data, _ = codec_of(type(self)).write(self)
        return {"type": entry.name, "version": entry.version, "data": msgspec.json.decode(data)}


class Event(Message, kind="event"):
    """Something that happened to an aggregate; recorded once, never changed.

    Class arguments: name, version, aliases and unknown_fields, as for a message.
    """

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[False]:  # type: ignore[override]
            """Tell checkers that `publish` does not take it."""


class Query(Message, Generic[R_co], kind="query"):
    """A question to its only handler, which answers it and changes nothing.

    `class ItemDetails(Query[Item])` tells type checkers that `cqrs.query` returns an `Item`;
    `class ItemDetails(Query)` tells them nothing.
    """

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[False]:  # type: ignore[override]
            """Tell checkers that `publish` does not take it."""


class Command(Message, Generic[R_co], kind="command"):
    """A request to its only handler to do something.

    `class OpenAccount(Command[int])` tells type checkers that its handler returns an `int`, which
    is the value of its result; `class OpenAccount(Command)` tells them nothing.

    Class arguments:
        name: the name of its task. The first segment is the application and determines the queue;
            a name without a dot is prefixed with the sender's application.
        version: the version of the command's fields.
        aggregate: the class of the aggregate that the command is addressed to.
        key: the field that holds the aggregate's id. If it is a number or a UUID, its text is the
            id, as in `session.get(Order, str(command.id))`. Commands to one aggregate are handled
            in the order in which they were sent, one at a time.
    """

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[False]:  # type: ignore[override]
            """Tell checkers that `publish` does not take it."""

    def delay(
        self, *, idempotency_key: str | None = None, task_id: str | None = None
    ) -> SentCommand[R_co]:
        """Send the command to its handler, wherever that runs.

        Args:
            idempotency_key: see `apply_async`.
            task_id: the id of the task; None for a new one. To repeat a send that failed with
                `PublishFailed`, pass the id in the error's `repeat_with`.

        Returns:
            A Celery AsyncResult of this send only.

        Raises:
            NotConfigured: no CQRS app exists in this process.
            PublishFailed: the broker did not accept the command.
            ValueError: the key is not a text of 1 to 200 characters.
        """
        if task_id is None:
            return self.apply_async(idempotency_key=idempotency_key)
        return self.apply_async(idempotency_key=idempotency_key, task_id=task_id)

    def apply_async(
        self, *, idempotency_key: str | None = None, **options: Any
    ) -> SentCommand[R_co]:
        """Send the command with Celery's own options, such as `countdown` or `priority`.

        Args:
            idempotency_key: identifies the request when the command is sent again: it then takes
                effect only once, and each result is the first outcome. 1 to 200 characters. Other
                commands may have the same key.
            options: the options of Celery's `Task.apply_async`, except the task's arguments.

        Returns:
            A Celery AsyncResult of this send only.

        Raises:
            NotConfigured: no CQRS app exists in this process.
            PublishFailed: the broker did not accept the command.
            ValueError: the key is not a text of 1 to 200 characters.
        """
        if idempotency_key is not None:
            options["idempotency_key"] = idempotency_key
        sent: SentCommand[R_co] = current_sender(type(self).__qualname__).send_command(
            self, **options
        )
        return sent
