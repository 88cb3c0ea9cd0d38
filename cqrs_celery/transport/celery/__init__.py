"""The transport's changes to Celery's worker, if one runs in this process."""
