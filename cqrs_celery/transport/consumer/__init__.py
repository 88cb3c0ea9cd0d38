"""One consumer of the reliable queue: take, deliver, settle, renew the lease, recover.

The translation of Kombu's channels is elsewhere in `transport`; nothing here depends on Celery.
"""
