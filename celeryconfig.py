"""Settings of the sample application; a program of your own has such a file too.

From the environment:

    REDIS_URL         where Redis or Valkey is (redis://localhost:6379/0)
    CQRS_LEASE_S      seconds after which a dead worker's messages come back (30)
    CQRS_EVENT_STORE  where events are kept: broker, or a SQL database's URL (broker)

Handlers and subscriptions acknowledge late, reject what was lost with a worker, and travel as JSON,
without a setting: the library sees to that for its own tasks.
"""

import os

_redis_url = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

# ---- broker: the reliable queue, on Redis

broker_url = _redis_url
# In place of Kombu's own Redis transport: keeps order, and loses nothing.
broker_transport = "cqrs_celery.transport:Transport"
broker_transport_options = {"lease_s": float(os.environ.get("CQRS_LEASE_S", "30"))}
# A worker may start before its broker does.
broker_connection_retry_on_startup = True

# ---- results: the outcomes of commands; subscriptions keep none

result_backend = _redis_url
# Seconds for which an outcome can be asked for.
result_expires = 24 * 3600

# ---- worker

# The modules with handlers and subscriptions.
imports = ("sample_app.handlers", "sample_app.read_model")
# Flower shows what workers tell it.
worker_send_task_events = True
# Messages that a pool process has waiting for it: few, so that workers share the load evenly.
worker_prefetch_multiplier = 4

# ---- cqrs_celery

# Goes in front of names that have no dot: the query ListItems is inventory.ListItems.
cqrs_application = "inventory"
# Events are kept in the broker's own Redis: a commit and its delivery are one step. In a SQL
# database they share transactions with rows, and a relay in the workers delivers them.
cqrs_event_store = os.environ.get("CQRS_EVENT_STORE", "broker")
# Seconds for which a command's id is remembered, so that it has its effect once: 14 days.
cqrs_command_id_ttl_s = 14 * 24 * 3600
