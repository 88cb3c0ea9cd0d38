"""The composition root: one Celery application and its settings become one CQRS application."""
