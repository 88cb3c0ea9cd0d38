"""The classes of Kombu's abstract suite that its own Redis tests leave out.

Copied beside `t/integration/common.py` as `test_redis_more.py` before a run.
"""

from __future__ import annotations

import os
from typing import Any

import kombu
import pytest

from .common import BaseFailover, BasePriority, BaseTimeToLive  # type: ignore[import-untyped]
from .test_redis import connection, invalid_connection  # type: ignore[import-untyped] # noqa: F401


@pytest.fixture
def failover_connection() -> Any:
    live = f"redis://{os.environ['REDIS_HOST']}:{os.environ['REDIS_6379_TCP']}"
    return kombu.Connection(f"redis://localhost:12345;{live}", connect_timeout=10)


class test_RedisFailover(BaseFailover): ...  # noqa: N801


class test_RedisTimeToLive(BaseTimeToLive): ...  # noqa: N801


class test_RedisPriorityAscending(BasePriority): ...  # noqa: N801
