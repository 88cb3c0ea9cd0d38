"""The errors of a Redis server that does not answer, or has no memory left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import redis

from ...errors import StoreUnavailable


@contextmanager
def reaching(where: str, what: str) -> Iterator[None]:
    """Turn the driver's errors into the package's.

    Args:
        where: names the server, without credentials.
        what: the operation, as it follows "could not": "read Order-42".

    Raises:
        StoreUnavailable: the server does not answer, or has reached its maxmemory.
    """
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise StoreUnavailable(
            f"could not {what}: {where} does not answer ({error}). Start it, or correct its URL."
        ) from error
    except redis.OutOfMemoryError as error:
        raise StoreUnavailable(
            f"could not {what}: {where} has reached its maxmemory ({error}). Nothing was written."
            " Give it more memory."
        ) from error
