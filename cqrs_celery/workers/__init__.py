"""What runs inside a Celery worker: task and request classes, bootsteps, relay and schedules."""
