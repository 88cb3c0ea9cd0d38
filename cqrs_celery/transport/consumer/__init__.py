"""What one consumer of the reliable queue does: take, deliver, settle, renew its lease, recover.

Kombu's channels are translated elsewhere in `transport`; nothing here knows Celery.
"""
