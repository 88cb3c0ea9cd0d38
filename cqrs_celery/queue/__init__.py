"""The reliable queue on Redis.

A message is in exactly one of five states: ready, waiting in its sequence, delayed, in flight or
dead. Every change is one Lua script (`scripts/`), so it happens completely or not at all. This
package knows only Redis: the transport deals with Celery, the event store with events.
"""
