"""The origin of a message: what links a command to its events and to what those cause."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NoReturn, Self
from uuid import uuid4

import msgspec


class _Context(dict[str, str]):
    """Texts by their names, which stay as they are: many messages share one of these."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(
            "a message's context can't be changed: other messages have it, too. What this one"
            " causes is given more by a block: with cqrs.context(name=text): …"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[_Context], tuple[dict[str, str]]]:
        return _Context, (dict(self),)


def frozen(context: Mapping[str, str]) -> Mapping[str, str]:
    """Return a context that nobody can change."""
    if type(context) is _Context:
        return context
    return _Context(context) if context else _NO_CONTEXT


#: The context of most messages; one for all costs no time.
_NO_CONTEXT: Final = _Context()


class Metadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The trace of an event.

    Attributes:
        correlation_id: the id of the first message of the trace; all messages that one request
            causes share it.
        causation_id: the id of the message that directly caused this one; "" if there is none.
        causation_parent_id: the id of the message that caused the causing one, if that is a command
            or a published message: neither is stored, so its own cause is kept here. "" if the
            causing message has no cause, or if it is an event, whose own metadata has the cause.
        context: what `CQRS.context` said of the request that began the trace, such as its user:
            texts by their names. All messages that the request causes share it.
    """

    correlation_id: str = ""
    causation_id: str = ""
    causation_parent_id: str = ""
    context: Mapping[str, str] = _NO_CONTEXT

    @classmethod
    def caused_by(cls, message_id: str, trace: Metadata, *, is_stored: bool = False) -> Self:
        """Return the trace of what a message causes; every trace is continued here.

        Args:
            message_id: the id of the causing command, event or published message.
            trace: the trace of that message; without a correlation id, the message begins a trace.
            is_stored: whether the message's own cause can be read from the event store.
        """
        return cls(
            correlation_id=trace.correlation_id or message_id,
            causation_id=message_id,
            causation_parent_id="" if is_stored else trace.causation_id,
            context=frozen(trace.context),
        )


#: The trace of a message without a known cause.
NO_METADATA: Final = Metadata()


def new_id() -> str:
    """Return a new unique id for a message."""
    return str(uuid4())


def utc_now() -> datetime:
    """Return the time now, in UTC."""
    return datetime.now(UTC)
