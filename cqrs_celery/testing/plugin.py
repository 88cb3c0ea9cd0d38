"""The pytest plugin: an application in memory, and scenarios that play in it.

It is there as soon as the package is installed. Override `cqrs_application`, `cqrs_settings` and
`cqrs_middleware` in a conftest.py to say the application's name, its settings and its middleware.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ..dispatch.middleware import Middleware
    from .scenario import InMemoryCQRS, Scenario


@pytest.fixture
def cqrs_application() -> str:
    """Return the application's name, which goes in front of names without a dot: "test"."""
    return "test"


@pytest.fixture
def cqrs_settings() -> dict[str, Any]:
    """Return more Celery settings of the application than those that keep it in memory: none."""
    return {}


@pytest.fixture
def cqrs_middleware() -> Sequence[Middleware]:
    """Return the application's middleware, the first one outermost: none."""
    return ()


@pytest.fixture
def in_memory_cqrs(
    cqrs_application: str, cqrs_settings: dict[str, Any], cqrs_middleware: Sequence[Middleware]
) -> Iterator[InMemoryCQRS]:
    """Provide a new application in memory, in which everything happens at once."""
    # Here: a test run that doesn't ask for it needn't import Celery.
    from .scenario import in_memory

    with in_memory(cqrs_application, middleware=cqrs_middleware, **cqrs_settings) as cqrs:
        yield cqrs


@pytest.fixture
def scenario(in_memory_cqrs: InMemoryCQRS) -> Scenario:
    """Return a scenario in which nothing has happened yet."""
    from .scenario import Scenario

    return Scenario(in_memory_cqrs)
