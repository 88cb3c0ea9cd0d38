"""What the transport changes in Celery's worker, where one runs in the process."""
