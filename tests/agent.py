"""An agent in a worker that measures Celery's methods, as those of monitoring services do.

A worker of the lab imports it by its setting `imports`. In its settings, `lab_agent` says whether
the methods are wrapped "before" the transport changes them or "after" it, and `lab_descriptors` how
many files are opened first, so that all others get higher numbers.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
from functools import wraps
from typing import Any

from celery.signals import worker_ready

#: What is measured: modules, each with a class and its methods.
MEASURED = (
    ("celery.concurrency.thread", "TaskPool", ("on_apply",)),
    ("celery.concurrency.asynpool", "AsynPool", ("flush",)),
    ("celery.worker.consumer.consumer", "Consumer", ("on_connection_error_after_connected",)),
    ("celery.worker.request", "Request", ("acknowledge", "reject", "on_retry")),
)

seen: set[str] = set()


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def measure(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    @wraps(original)
    def measured(*args: Any, **options: Any) -> Any:
        if name not in seen:
            seen.add(name)
            say(f"agent saw {name}")
        return original(*args, **options)

    setattr(owner, name, measured)


def measure_all(*, is_changed: bool) -> None:
    for module, owner, names in MEASURED:
        # A pool that the worker does not have is changed by nobody.
        if is_changed and module not in sys.modules:
            continue
        found = getattr(importlib.import_module(module), owner)
        for name in names:
            changed = vars(found).get("__cqrs_celery_patches__", ())
            if (name in changed) is not is_changed:
                sys.exit(f"agent: {owner}.{name} changed: {not is_changed}")
            measure(found, name)
    say("agent measures")


settings = json.loads(os.environ["LAB_CONF"])
if settings.get("lab_descriptors"):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(settings["lab_descriptors"])]
if settings.get("lab_agent") == "before":
    measure_all(is_changed=False)
elif settings.get("lab_agent") == "after":
    worker_ready.connect(lambda **_: measure_all(is_changed=True), weak=False)
