"""What users may rely on: the names that the package offers, and that each says what it is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cqrs_celery
from cqrs_celery.dispatch import sending, tasks
from cqrs_celery.transport import envelope
from tests.nodes import REPOSITORY

PACKAGE = REPOSITORY / "cqrs_celery"

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

#: Change it with a line in the changelog and in docs/reference/public-api.md.
PUBLIC = [
    "CQRS",
    "Aggregate",
    "Command",
    "CommandResult",
    "Event",
    "EventData",
    "EventStore",
    "Message",
    "Metadata",
    "Query",
    "RecordedEvent",
    "Refusal",
    "Session",
    "applies",
    "command_handler",
    "embedded_redis",
    "open_event_store",
    "query_handler",
    "redis_or_embedded",
    "subscribes",
    "upcaster",
]


def test_the_package_offers_these_names_and_no_others() -> None:
    assert cqrs_celery.__all__ == PUBLIC
    assert len(PUBLIC) <= 25
    for name in PUBLIC:
        assert getattr(cqrs_celery, name).__module__.startswith("cqrs_celery.")


def public_parts(path: Path) -> Iterator[tuple[str, Documented]]:
    """Yield a module, and its public functions, classes and methods, each with where it stands."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    yield str(path.relative_to(REPOSITORY)), module
    owners: list[Documented] = [module]
    while owners:
        for part in owners.pop().body:
            if not isinstance(part, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            is_overload = any("overload" in ast.unparse(one) for one in part.decorator_list)
            if part.name.startswith(("_", "test_")) or is_overload:
                continue
            yield f"{path.relative_to(REPOSITORY)}:{part.lineno} {part.name}", part
            if isinstance(part, ast.ClassDef):
                owners.append(part)


def test_every_public_name_says_in_its_first_line_what_it_is() -> None:
    wordless = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for place, part in public_parts(path):
            first = (ast.get_docstring(part) or "").partition("\n")[0]
            if not first.endswith("."):
                wordless.append(f"{place}: {first!r}")
    assert wordless == []


@pytest.mark.parametrize(("module", "name"), [(sending, "SEQUENCE_HEADER"), (tasks, "LEASE")])
def test_dispatch_and_transport_mean_the_same(module: ModuleType, name: str) -> None:
    assert getattr(module, name) == getattr(envelope, name)
