"""CQRS, event sourcing and messaging for Python teams that already run Celery."""
