"""End a worker that can't work as it is configured, by one line that says what to do.

Celery ends a worker on an error that a step raises, too, but with a traceback of a hundred lines.
What a signal's receiver raises, it logs, and goes on.
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
    """Turn an error that the user has to correct into a line in the log, and the worker's end.

    Raises:
        SystemExit: the program is put together wrongly, or the event store has no tables.
    """
    try:
        yield
    except (ConfigurationError, SchemaError) as error:
        logger.critical("the worker can't start: %s", error)
        raise SystemExit(EX_FAILURE) from error
