"""The application: `celery -A sample_app.app worker`, `celery -A sample_app.app flower`."""

from __future__ import annotations

from celery import Celery

from cqrs_celery import CQRS

app = Celery("inventory")
app.config_from_object("celeryconfig")
cqrs = CQRS(app)
