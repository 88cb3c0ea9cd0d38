"""The base classes of all messages: typed, frozen values under registered names and versions.

    class CheckInItems(Command, name="inventory.check_in_items", aggregate=InventoryItem, key="id"):
        id: str
        count: int

A message holds its user's fields only. When it happened, to what, and why, is metadata beside it.
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
    """The metaclass of messages, which registers every message class once it is whole.

    msgspec calls `__init_subclass__` before a class knows its fields; a metaclass comes after.
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
        """Make the class and register it; a class with `kind` is a base and is not registered."""
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

    # msgspec's own __init__ takes the options that __new__ has taken.
    def __init__(cls, cls_name: str, bases: tuple[type, ...], namespace: dict[str, Any], **_: Any):
        super().__init__(cls_name, bases, namespace)


#: The fixed options that a class may have from a msgspec.Struct among its bases.
_INHERITED: Final = ("array_like", "eq", "omit_defaults", "tag")

#: What may become of fields that a class does not have.
UnknownFields = Literal["ignore", "refuse", "keep"]


def _unknown_options(cls_name: str, unknown_fields: str) -> dict[str, Any]:
    if unknown_fields not in get_args(UnknownFields):
        raise RegistrationError(
            f"{cls_name} has unknown_fields = {unknown_fields!r}; accepted: 'ignore', 'refuse' or"
            " 'keep'"
        )
    options: dict[str, Any] = {"forbid_unknown_fields": unknown_fields == "refuse"}
    # msgspec keeps what is no field in an instance's dict, if there is one.
    return {**options, "dict": True} if unknown_fields == "keep" else options


def _check_names(cls: Any) -> None:
    """Refuse fields whose names the base class needs."""
    for field in cls.__struct_fields__:
        if field in cls.__reserved__ or field.startswith("_"):
            raise ReservedFieldName(
                f"{where(cls)} has a field {field!r}, a name that its base class"
                f" {cls.__kind__} keeps for itself"
                f" ({', '.join(sorted(cls.__reserved__)) or 'and names that begin with _'})."
                " Rename the field.",
                field=field,
            )


def _only_for_what_is_kept(cls: Any) -> RegistrationError:
    return RegistrationError(
        f"{where(cls)} has a version, or unknown_fields, which are for what is stored or"
        " sent: a query never leaves its process. Leave them out."
    )


def _check_aliases(cls: Any, aliases: Sequence[str]) -> None:
    if isinstance(aliases, str):
        raise RegistrationError(
            f"{where(cls)} has aliases = {aliases!r}; expected a tuple of names: ({aliases!r},)"
        )
    if aliases and cls.__kind__ not in ("event", "message"):
        raise RegistrationError(
            f"{where(cls)} has aliases, which are for events and messages: a {cls.__kind__}'s name"
            " is what others call it by. Keep the name, and rename the class alone."
        )


def _check_key(cls: Any, aggregate: type | None, key: str | None) -> None:
    if cls.__kind__ not in ("command", "message") or (aggregate and cls.__kind__ == "message"):
        raise RegistrationError(
            f"{where(cls)} names an aggregate, or a key: only a command is for one; a message that"
            " is published may have a key alone"
        )
    if cls.__kind__ == "command" and (aggregate is None or key is None):
        raise RegistrationError(
            f"{where(cls)} names {'a key' if aggregate is None else 'an aggregate'} only; expected"
            " both: aggregate=InventoryItem, key='id'"
        )
    if key not in cls.__struct_fields__:
        raise RegistrationError(
            f"{where(cls)} has the key {key!r}, but its fields are"
            f" {', '.join(cls.__struct_fields__) or 'none'}"
        )


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Message(msgspec.Struct, metaclass=MessageMeta, kind="message", frozen=True):
    """Something that is told to subscribers without being stored: `cqrs.publish(message)`.

    Class arguments:
        name: under which it travels; without a dot, the application is put in front.
        version: of the content's shape.
        key: the field whose value says which messages of this class stay in order, one at a time;
            without it, they are handled in no certain order.
        aliases: names that it had before; what comes under one is read as this class.
        unknown_fields: what becomes of fields that come and that it does not have: "ignore" (the
            default) passes them over, "refuse" makes them an error, "keep" keeps them beside the
            message (see `unknown_fields_of`) and writes them again. A subclass inherits it.
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
            """Tell checkers that `publish` takes it; the kinds below say that it does not."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return what makes Pydantic and FastAPI take a message; they ask for it."""
        return core_schema_of(cls)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """Return the JSON schema that stands in OpenAPI."""
        return json_schema_of(cls)

    def __json__(self) -> dict[str, Any]:
        """Return the plain values that Celery's JSON encoder writes for a message.

        Raises:
            UnwritableMessage: a field holds a value that would not come back as it is.
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
    """A question to its one handler, which answers and changes nothing.

    `class ItemDetails(Query[Item])` tells type checkers that `cqrs.query` answers with an `Item`;
    `class ItemDetails(Query)` tells them nothing.
    """

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[False]:  # type: ignore[override]
            """Tell checkers that `publish` does not take it."""


class Command(Message, Generic[R_co], kind="command"):
    """A request to its one handler to do something.

    `class OpenAccount(Command[int])` tells type checkers that its handler returns an `int`, which
    is the value of its result; `class OpenAccount(Command)` tells them nothing.

    Class arguments:
        name: the name of its task. The first segment is the application and gives the queue;
            without a dot, the sender's application is put in front.
        version: of the content's shape.
        aggregate: the class of the aggregate it is for.
        key: the field that holds the aggregate's id; of a number or a UUID, its text is the id, as
            in `session.get(Order, str(command.id))`. Commands to one aggregate are handled in the
            order in which they were sent, one at a time.
    """

    if TYPE_CHECKING:

        def __publishable__(self) -> Literal[False]:  # type: ignore[override]
            """Tell checkers that `publish` does not take it."""

    def delay(
        self, *, idempotency_key: str | None = None, task_id: str | None = None
    ) -> SentCommand[R_co]:
        """Send the command to its handler, wherever that runs; returns a Celery AsyncResult.

        Args:
            idempotency_key: see `apply_async`.
            task_id: of this sending, for one that was refused with `PublishFailed`, whose
                `repeat_with` has it; None for a new one.

        Raises:
            NotConfigured: no CQRS app exists in this process.
            PublishFailed: the broker did not take it.
            ValueError: the key is no text of 1 to 200 characters.
        """
        if task_id is None:
            return self.apply_async(idempotency_key=idempotency_key)
        return self.apply_async(idempotency_key=idempotency_key, task_id=task_id)

    def apply_async(
        self, *, idempotency_key: str | None = None, **options: Any
    ) -> SentCommand[R_co]:
        """Send the command with Celery's own options, as `countdown` or `priority`.

        Args:
            idempotency_key: the same whenever the command is sent again, which then has its effect
                once, and its first outcome; 1 to 200 characters. Other commands may have the same.
            options: what Celery's `Task.apply_async` takes beside the arguments.

        Returns:
            A Celery AsyncResult, of this sending alone.

        Raises:
            NotConfigured: no CQRS app exists in this process.
            PublishFailed: the broker did not take it.
            ValueError: the key is no text of 1 to 200 characters.
        """
        if idempotency_key is not None:
            options["idempotency_key"] = idempotency_key
        sent: SentCommand[R_co] = current_sender(type(self).__qualname__).send_command(
            self, **options
        )
        return sent
