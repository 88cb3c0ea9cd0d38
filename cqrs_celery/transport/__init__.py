"""The Kombu transport of the reliable queue.

    broker_transport = "cqrs_celery.transport:Transport"     # with a plain redis:// URL
    broker_url = "reliable-redis://localhost:6379/0"         # or by scheme, once this is imported

With TLS the scheme is reliable-rediss, with Sentinel reliable-sentinel. Importing this package
registers the schemes with Kombu. The queue keeps the guarantees; this package translates it into
channels, acknowledgements and an event loop.
"""

from __future__ import annotations

import kombu.connection
import kombu.transport

from .channel import Channel
from .transport import SCHEMES, SentinelTransport, Transport

__all__ = ["TRANSPORT", "Channel", "SentinelTransport", "Transport"]

#: The value of the setting `broker_transport`.
TRANSPORT = "cqrs_celery.transport:Transport"

for _stock, _ours in SCHEMES.items():
    _class = "SentinelTransport" if _stock == "sentinel" else "Transport"
    kombu.transport.TRANSPORT_ALIASES[_ours] = f"cqrs_celery.transport:{_class}"
    # Tools such as Flower look at the resolved name to know that LLEN answers.
    kombu.connection.resolve_aliases[_ours] = "redis"
kombu.connection.resolve_aliases[TRANSPORT] = "redis"
