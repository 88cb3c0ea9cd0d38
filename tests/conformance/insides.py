"""Tests that look at stock's own insides, each with the reason why ours has none of it.

The bar is Kombu's abstract suite (`t/integration/common.py`) and Celery's integration suite. No
test of the former may stand here, and of the latter only what cannot begin without stock's insides:
then the same test runs without that look (`half_open.py`). Otherwise a test stands here only if it
is of Kombu's own modules for Redis, and reads or patches a key or an attribute that is no part of
what a user of the transport sees. What the test is for is told in the reason, with what ours does
about it.
"""

_BLOCKING_POP = (
    "waits for the blocking pop's own socket (`_in_poll`); ours has no blocking pop, a take is"
    " answered at once"
)
_TTL_OF_LIST = (
    "reads the TTL of the queue's list; ours keeps a queue's expiry beside it, and a consumer's"
    " heartbeat deletes it with its messages, which lie under other keys"
)
_UNACKED = (
    "reads the keys `unacked` and `unacked_index`; ours has leases in their place, tested in"
    " `tests/integration/test_queue_recovery.py`"
)

#: A pattern of test ids, and why the test says nothing about ours.
INSIDES: dict[str, str] = {
    "*test_redis.py::test_event_loop_consumes_after_connection_reconnect[[]*-BRPOP]": _BLOCKING_POP,
    "*test_redis.py::test_RedisBrpopHealthCheck::*": _BLOCKING_POP,
    "*test_redis_brpop_qos.py::*": _BLOCKING_POP,
    "*test_connection_recovery.py::*": (
        f"{_BLOCKING_POP}. The same tests without that look are `test_half_open.py`"
    ),
    "*test_redis.py::test_RedisRestoreVisible::*": _UNACKED,
    "*test_redis.py::test_RedisRestoreAtShutdown::*": _UNACKED,
    "*test_redis.py::test_RedisRestoreBindingLookupFailure::test_failed_*": (
        "makes the look-up of bindings fail during a requeue; ours puts a message back without one"
    ),
    "*test_redis.py::test_RedisQueueExpiration::test_queue_expiration_set*": _TTL_OF_LIST,
    "*test_redis.py::test_RedisQueueExpiration::test_expiration_gets_reset_on_*": _TTL_OF_LIST,
    "*test_redis.py::test_RedisQueueExpiration::test_queue_expires_for_all_*": _TTL_OF_LIST,
    "*test_RedisPublishBatch::test_retry_on_timeout_keeps_publication_immediate*": (
        "stock does not batch where redis-py may repeat a pipeline; ours may be repeated, since"
        " each message has a publish id"
    ),
}
