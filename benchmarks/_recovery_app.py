"""Run a worker as if on another host: its kernel names itself by another boot id."""

from __future__ import annotations

import importlib
import uuid
from contextlib import suppress

from tests.chaos.nursery import run_worker


def run_elsewhere(module: str, *argv: str) -> None:
    """Run a Celery worker that can't tell by their locks whether other processes live."""
    # Before there were locks, every worker judged by leases alone, as one elsewhere does.
    with suppress(ImportError):
        locks = importlib.import_module("cqrs_celery.transport.consumer.process_locks")
        boot_id = uuid.uuid4().hex
        vars(locks)["boot_id"] = lambda *_: boot_id
    run_worker(module, *argv)
