"""The parts that run inside a Celery worker: consumer, requests, bootsteps and the relay."""
