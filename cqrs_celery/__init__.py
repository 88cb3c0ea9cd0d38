"""CQRS, event sourcing and messaging for Python teams that already run Celery."""

from __future__ import annotations

from .app.cqrs import CQRS
from .backends.opening import open_event_store
from .backends.redis.embedded import embedded_redis, redis_or_embedded
from .dispatch.decorators import command_handler, query_handler, subscribes
from .domain.aggregate import Aggregate
from .domain.applies import applies
from .messages.message import Command, Event, Message, Query
from .messages.metadata import Metadata
from .messages.results import CommandResult
from .messages.upcasting import EventData, upcaster
from .refusal import Refusal
from .session.session import Session
from .store.events import RecordedEvent
from .store.ports import EventStore

__all__ = [
    "CQRS",
    "Aggregate",
    "Command",
    "CommandResult",
    "Event",
    "EventData",
    "EventStore",
    "Message",
    "Metadata",
    "Query",
    "RecordedEvent",
    "Refusal",
    "Session",
    "applies",
    "command_handler",
    "embedded_redis",
    "open_event_store",
    "query_handler",
    "redis_or_embedded",
    "subscribes",
    "upcaster",
]
