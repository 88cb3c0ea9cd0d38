"""Kombu's face of the reliable queue.

    broker_transport = "cqrs_celery.transport:Transport"     # with a plain redis:// URL
    broker_url = "reliable-redis://localhost:6379/0"         # or by scheme, once this is imported

Importing this package makes the scheme known to Kombu. What is promised is the queue's doing; here
it is translated into channels, acknowledgements and an event loop.
"""

from __future__ import annotations

import kombu.connection
import kombu.transport

from .channel import Channel
from .transport import Transport

__all__ = ["SCHEME", "TRANSPORT", "Channel", "Transport"]

#: What `broker_transport` must be.
TRANSPORT = "cqrs_celery.transport:Transport"

#: The URL scheme that selects this transport.
SCHEME = "reliable-redis"

kombu.transport.TRANSPORT_ALIASES[SCHEME] = TRANSPORT
# Tools such as Flower look at the resolved name to know that LLEN answers.
kombu.connection.resolve_aliases[SCHEME] = "redis"
