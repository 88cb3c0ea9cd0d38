"""The reliable queue on Redis.

A message is in exactly one of: ready, waiting in its sequence, delayed, in flight, dead. Every
change is one Lua script (`scripts/`), so it happens whole or not at all. This package knows Redis
only: Celery is the transport's business, events are the event store's.
"""
