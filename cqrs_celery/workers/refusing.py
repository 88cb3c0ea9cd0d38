"""End a worker that can't work as configured, with one log line that names the remedy.

If a step raises an error, Celery ends the worker too, but with a traceback of a hundred lines. If a
signal's receiver raises one, Celery logs it and continues.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from celery.platforms import EX_FAILURE

from ..errors import ConfigurationError, SchemaError

logger = logging.getLogger(__name__)


@contextmanager
def ending_the_worker() -> Iterator[None]:
    """Log an error that the user has to correct as one line, and end the worker.

    Raises:
        SystemExit: the configuration is wrong, or the event store has no tables.
    """
    try:
        yield
    except (ConfigurationError, SchemaError) as error:
        logger.critical("the worker can't start: %s", error)
        raise SystemExit(EX_FAILURE) from error
