"""Celery's methods are changed once each, whoever else wraps them, and only if they are there."""

from __future__ import annotations

import os
import pickle
import resource
import sys
import types
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

# A worker has all of these; a process that only sends has none.
import celery.concurrency.asynpool
import celery.concurrency.thread
import celery.worker.consumer.consumer
import celery.worker.control
import celery.worker.request  # noqa: F401
import pytest

from cqrs_celery.errors import UnsupportedCelery
from cqrs_celery.transport.celery import patching, scheduled, worker_patches
from tests.nodes import REPOSITORY


class Pool:
    """Stands for a class of Celery's."""

    def __init__(self) -> None:
        self._queue = ["ours"]

    def apply(self, target: str, args: Any = None, **options: Any) -> str:
        return f"{target} {self._queue}"


@pytest.fixture
def pool() -> type[Any]:
    return type("Pool", (), dict(vars(Pool)))


def ours(original: Any) -> Any:
    def apply(pool: Any, *args: Any, **options: Any) -> str:
        return f"ours({original(pool, *args, **options)})"

    return apply


def agent(owner: Any, name: str, *, keeps_facts: bool) -> None:
    """Wrap a method as an agent does that measures."""
    original = getattr(owner, name)

    def measured(*args: Any, **options: Any) -> str:
        return f"agent({original(*args, **options)})"

    setattr(owner, name, wraps(original)(measured) if keeps_facts else measured)


@pytest.mark.parametrize("keeps_facts", [True, False])
def test_a_method_that_an_agent_has_wrapped_before_is_changed_all_the_same(
    pool: type[Any], keeps_facts: bool
) -> None:
    agent(pool, "apply", keeps_facts=keeps_facts)
    for _ in range(2):
        patching.wrap(pool, "apply", ours)
    assert pool().apply("run") == "ours(agent(run ['ours']))"


@pytest.mark.parametrize("keeps_facts", [True, False])
def test_a_method_that_an_agent_wraps_afterwards_is_not_changed_again(
    pool: type[Any], keeps_facts: bool
) -> None:
    patching.wrap(pool, "apply", ours)
    agent(pool, "apply", keeps_facts=keeps_facts)
    patching.wrap(pool, "apply", ours)
    assert pool().apply("run") == "agent(ours(run ['ours']))"


def test_a_change_of_a_class_is_none_of_the_classes_below_it(pool: type[Any]) -> None:
    class Below(pool):
        def apply(self, target: str, args: Any = None, **options: Any) -> str:
            return f"below({super().apply(target)})"

    patching.wrap(pool, "apply", ours)
    patching.wrap(Below, "apply", ours)
    assert Below().apply("run") == "ours(below(ours(run ['ours'])))"


@pytest.fixture
def module(pool: type[Any], monkeypatch: pytest.MonkeyPatch) -> str:
    made: Any = types.ModuleType("pools")
    made.Pool = pool
    monkeypatch.setitem(sys.modules, "pools", made)
    return "pools"


def test_what_is_there_passes_the_check_wrapped_or_not(module: str, pool: type[Any]) -> None:
    needed = [
        *patching.methods(module, "Pool", apply=("target", "args")),
        *patching.attributes(module, "Pool", "_queue", "apply"),
        *patching.attributes("a_module.not_imported", "Pool", "anything"),
    ]
    patching.check(needed)
    patching.wrap(pool, "apply", ours)
    patching.check(needed)
    for keeps_facts in (True, False):
        agent(pool, "apply", keeps_facts=keeps_facts)
        patching.check(needed)


@pytest.mark.parametrize(
    ("needed", "text"),
    [
        (patching.Needed("pools", "Pools"), "pools.Pools"),
        (patching.Needed("pools", "Pool._cache"), "pools.Pool._cache"),
        (patching.Needed("pools", "Pool.flush", ()), "pools.Pool.flush()"),
        (patching.Needed("pools", "Pool.apply", ("args", "target")), "apply(args, target)"),
        (patching.Needed("pools", "Pool.apply", ()), "pools.Pool.apply()"),
    ],
)
def test_what_is_missing_or_called_otherwise_is_named_with_the_versions(
    module: str, needed: patching.Needed, text: str
) -> None:
    with pytest.raises(UnsupportedCelery) as caught:
        patching.check([needed])
    error = pickle.loads(pickle.dumps(caught.value))
    assert text in str(error)
    assert "celery>=5.7,<5.8" in str(error)
    assert error.missing == (str(needed),)
    assert error.celery_version in str(error)
    assert error.kombu_version in str(error)


def test_this_version_of_celery_has_all_that_is_needed() -> None:
    every = [*worker_patches.NEEDED, *scheduled.NEEDED]
    patching.check(every)
    # and what is looked for is really looked for
    is_imported = [one for one in every if one.module in sys.modules]
    assert len(is_imported) > 20


def test_the_supported_versions_are_those_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in patching.SUPPORTED.split(" and "):
        assert f'"{requirement}"' in text


# ------------------------------------------------------------ many descriptors


class Job:
    """A task that was sent to a child."""

    def __init__(self) -> None:
        self._write_to = object()
        self._accepted = False


class Children:
    """A pool of one child, which says by a pipe that it has begun."""

    def __init__(self, fileno: int, hear: Callable[[int], None]) -> None:
        self.job = Job()
        self._cache = {1: self.job}
        self._fileno_to_outq = {fileno: object()}
        self._hear = hear

    def handle_result_event(self, fileno: int) -> None:
        self._hear(fileno)


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Open more descriptors than select() knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip(f"a process may open {hard} files here, at most")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    opened = [os.open(Path("/dev/null"), os.O_RDONLY) for _ in range(1200)]
    yield
    for one in opened:
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("descriptors")
def test_a_child_is_heard_though_its_pipe_has_a_number_above_1023() -> None:
    end, other = os.pipe()
    assert end > 1023

    def hear(fileno: int) -> None:
        os.read(fileno, 1)
        children.job._accepted = True

    children = Children(end, hear)
    os.write(other, b".")
    worker_patches.hear_children(children)
    assert children.job._accepted
    # and one that has ended is not waited for in a busy loop
    heard: list[int] = []
    children = Children(end, heard.append)
    os.close(other)
    worker_patches.hear_children(children)
    assert not heard
    os.close(end)
